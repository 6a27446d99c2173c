from cifar_research.augmentation.preview import main
from cifar_research.console import command

command(main)()
