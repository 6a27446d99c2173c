"""Layers that are faster or more exact than Keras's of the same name, one file each.

To switch one off, import the layer of the same name from keras.layers here: `Conv2D`, `Dense`, `BatchNormalization`,
`Activation`, `DepthwiseConv2D`. For `ReluMaxPooling2D` and `Dropout` see their files.
"""

from cifar_research.models.layers.activation import Activation as Activation
from cifar_research.models.layers.bias import Dense as Dense
from cifar_research.models.layers.context import called_with as called_with
from cifar_research.models.layers.context import debiased as debiased
from cifar_research.models.layers.context import measures_norms as measures_norms
from cifar_research.models.layers.convolution import Conv2D as Conv2D
from cifar_research.models.layers.depthwise import DepthwiseConv2D as DepthwiseConv2D
from cifar_research.models.layers.dropout import Dropout as Dropout
from cifar_research.models.layers.initializers import Dirac as Dirac
from cifar_research.models.layers.normalization import BatchNormalization as BatchNormalization
from cifar_research.models.layers.pooling import ReluMaxPooling2D as ReluMaxPooling2D
from cifar_research.models.layers.tensorflow_ops import has_onednn as has_onednn
