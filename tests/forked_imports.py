"""Imports of forked.py's server before it forks; nothing here may initialize a device."""

import gc

import cached_configs  # noqa: F401
import h5py  # noqa: F401
import keras  # noqa: F401
import matplotlib.figure  # noqa: F401
import optuna  # noqa: F401
import PIL.Image
import pytest  # noqa: F401
import tensorflow  # noqa: F401

import cifar_research.evaluate
import cifar_research.predict
import cifar_research.train  # noqa: F401
from cifar_research import config
from cifar_research.augmentation import draws  # noqa: F401
from cifar_research.data import batches  # noqa: F401
from cifar_research.display import figures, tensorboard  # noqa: F401
from cifar_research.models import classifier  # noqa: F401
from cifar_research.optimization import losses, optimizers, schedules  # noqa: F401
from cifar_research.runs import metrics  # noqa: F401
from cifar_research.sweeps import search  # noqa: F401
from cifar_research.training import features, forward, loop, setup, steps  # noqa: F401

PIL.Image.init()
config.parse()
gc.collect()
gc.freeze()  # what is here stays, so no process need look through it for garbage
