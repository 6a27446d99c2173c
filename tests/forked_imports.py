"""Imports of forked.py's server before it forks; nothing here may initialize a device."""

import gc
import inspect
import types

import h5py  # noqa: F401
import keras  # noqa: F401
import matplotlib.figure  # noqa: F401
import optuna  # noqa: F401
import PIL.Image
import pytest  # noqa: F401
import tensorflow  # noqa: F401
from tensorflow.python.autograph.core.converter import ConversionOptions, ProgramContext
from tensorflow.python.autograph.impl import api

import cifar_research.evaluate
import cifar_research.predict
import cifar_research.train  # noqa: F401
from cifar_research import augmentation
from cifar_research.augmentation import draws
from cifar_research.data import batches
from cifar_research.display import figures, tensorboard  # noqa: F401
from cifar_research.models import classifier  # noqa: F401
from cifar_research.optimization import losses, optimizers, schedules
from cifar_research.runs import metrics  # noqa: F401
from cifar_research.sweeps import search  # noqa: F401
from cifar_research.training import features, forward, loop, setup, steps  # noqa: F401

# What nearly every run traces. TensorFlow's AutoGraph rewrites the source of each such function once a process, which
# takes as long as the rest of a small run: here they are rewritten once for all.
TRACED = {
    augmentation: ["compose.<locals>.composed", "_flip.<locals>.transform", "shift.<locals>.transform"],
    batches: [
        "training.<locals>.batch", "indices", "_reader.<locals>.read", "_rows.<locals>.<lambda>",
        "evaluation.<locals>.batch",
    ],
    draws: ["uniform", "positions"],
    forward: [
        "of_images.<locals>.train", "of_images.<locals>.evaluate", "of_images.<locals>.<lambda>",
        "Preprocessing.prepare", "Preprocessing.standardize",
    ],
    losses: ["mean_squared_error.<locals>.loss", "_smooth"],
    optimizers: ["Optimizer.apply", "adamw.<locals>.update"],
    schedules: ["_after_warmup.<locals>.schedule", "constant.<locals>.<lambda>"],
    setup: ["enter.<locals>.network", "_learning_rate.<locals>.<lambda>"],
    steps: ["train_step", "_update", "_all_sum", "_scored", "_add", "eval_step"],
}  # fmt: skip


def rewrite(module, names):
    pending = [value for _, value in inspect.getmembers(module) if getattr(value, "__module__", "") == module.__name__]
    codes = []
    while pending:
        value = pending.pop()
        if inspect.isclass(value):
            pending += vars(value).values()
        elif inspect.isroutine(value):
            pending.append(getattr(value, "__code__", None))
        elif inspect.iscode(value):
            pending += value.co_consts
            codes.append(value)
    codes = [code for code in codes if code.co_qualname in names]
    assert {code.co_qualname for code in codes} == set(names), module
    for code in codes:
        cells = tuple(types.CellType() for _ in code.co_freevars)
        options = ConversionOptions(recursive=True, user_requested=False, optional_features=None)
        api._convert_actual(types.FunctionType(code, vars(module), closure=cells), ProgramContext(options))


for module, names in TRACED.items():
    rewrite(module, names)
PIL.Image.init()
gc.collect()
gc.freeze()  # what is here stays, so no process need look through it for garbage
