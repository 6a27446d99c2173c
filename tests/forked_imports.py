"""Imports of forked.py's server before it forks; nothing here may initialize a device."""

import h5py  # noqa: F401
import keras  # noqa: F401
import matplotlib.figure  # noqa: F401
import optuna  # noqa: F401
import pytest  # noqa: F401
import tensorflow  # noqa: F401

from cifar_research import evaluate, predict, train  # noqa: F401
from cifar_research.display import figures, tensorboard  # noqa: F401
from cifar_research.models import classifier  # noqa: F401
from cifar_research.runs import metrics  # noqa: F401
from cifar_research.sweeps import search  # noqa: F401
from cifar_research.training import features, loop, setup, steps  # noqa: F401
