from cifar_research.augmentation.preview import main
from cifar_research.display.console import command

command(main)()
