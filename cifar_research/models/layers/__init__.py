"""Layers: drop-ins for Keras's own."""

from cifar_research.models.layers.normalization import *  # noqa: F403
