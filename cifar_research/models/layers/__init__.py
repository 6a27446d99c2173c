"""Drop-ins for Keras's layers that are faster or more exact: a file for each trick.

To switch a trick off, import the layer of the same name from keras.layers here instead: `Conv2D`, `Dense`,
`BatchNormalization`, `Activation`. `ReluMaxPooling2D` and `Dropout` have no equal there; their files say how.
"""

from cifar_research.models.layers.activation import Activation
from cifar_research.models.layers.bias import Dense
from cifar_research.models.layers.context import portable, random_seed, rows_from, several_images
from cifar_research.models.layers.convolution import Conv2D
from cifar_research.models.layers.dropout import Dropout
from cifar_research.models.layers.initializers import Dirac
from cifar_research.models.layers.normalization import BatchNormalization
from cifar_research.models.layers.pooling import ReluMaxPooling2D
from cifar_research.models.layers.processor import has_matrix_units

__all__ = [
    "Activation",
    "BatchNormalization",
    "Conv2D",
    "Dense",
    "Dirac",
    "Dropout",
    "ReluMaxPooling2D",
    "has_matrix_units",
    "portable",
    "random_seed",
    "rows_from",
    "several_images",
]
