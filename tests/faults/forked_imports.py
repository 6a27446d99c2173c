"""What the server of forked.py imports before it forks: everything of a run, and nothing that starts a device."""

import h5py  # noqa: F401
import keras  # noqa: F401
import matplotlib.figure  # noqa: F401
import tensorflow  # noqa: F401

from cifar_research import features, figures, loop, metrics, model, steps, tasks, tensorboard, train  # noqa: F401
