from cifar_research.augmentation.preview import main

main()
