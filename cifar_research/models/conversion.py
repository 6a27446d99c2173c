"""Weights of a PyTorch network, as those of a Keras network with the same layers."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config.targets import nearest
from cifar_research.models.classifier import leaves
from cifar_research.runtime import files
from cifar_research.runtime.errors import WeightsError
from cifar_research.runtime.lazy import keras

_READER = Path(__file__).with_name("torch_reader.py")
# The name in PyTorch of each weight of a Keras layer.
_IN_TORCH = {
    "kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip

Arrays = Mapping[str, np.ndarray]


def read(source: str, python: str) -> dict[str, np.ndarray]:
    """Return what torch_reader.py writes of a file of PyTorch's, or of `efficientnet_lite0`.

    python: of an environment that has PyTorch. No code in the file is run. WeightsError if the file cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "arrays.npz")
        try:
            done = subprocess.run([python, _READER, source, output], capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise WeightsError(
                f"--python: {python} cannot be run ({error.strerror}); give a Python with PyTorch"
            ) from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise WeightsError(f"{source}: cannot be read as PyTorch's weights ({reason}); give a whole state dict")
        with np.load(output) as arrays:
            return dict(arrays)


def network_of(backbone: keras.Model) -> keras.Model:
    """Return the network inside a backbone that has its own preprocessing, else the backbone."""
    with_weights = [layer for layer in backbone.layers if layer.weights]
    is_wrapped = len(with_weights) == 1 and isinstance(with_weights[0], keras.Model)
    return with_weights[0] if is_wrapped else backbone


def convert(network: keras.Model, state: Arrays, names: Mapping[str, str | None]) -> None:
    """Set the weights of a Keras network to those of a PyTorch state dict.

    names: {regular expression of a module's whole name: name of its layer, with \\1 for a group}; None leaves the
    module out. WeightsError for a name without a partner, on either side, or a weight of another shape.
    """
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = value
    layers = {layer.name: layer for layer in leaves(network) if layer.weights}
    _refuse_other_order(network)
    sources: dict[str, str] = {}
    for module in modules:
        rule = next((rule for rule in names if re.fullmatch(rule, module)), None)
        if rule is None:
            raise WeightsError(f"names: no rule matches the module {module}; add one, or null to leave the module out")
        if (replacement := names[rule]) is None:
            continue
        layer = re.sub(rule, replacement, module)
        if layer not in layers:
            raise WeightsError(f"names: {rule}: {network.name} has no layer {layer!r}{nearest(layer, list(layers))}")
        if layer in sources:
            raise WeightsError(f"names: {rule}: {module} and {sources[layer]} are both for {layer}; correct a rule")
        sources[layer] = module
    if missing := [name for name in layers if name not in sources]:
        raise WeightsError(f"names: no module is for {', '.join(missing[:5])} of {network.name}; add a rule")
    values = [
        (weight, _value(layer, weight, modules[sources[name]], sources[name]))
        for name, layer in layers.items()
        for weight in layer.weights
    ]
    for name, layer in layers.items():
        used = {_IN_TORCH.get(weight.name, weight.name) for weight in layer.weights}
        if rest := sorted(modules[sources[name]].keys() - used - {"num_batches_tracked"}):
            raise WeightsError(f"{sources[name]}: has {rest[0]}, and {name} has not; give the network the same layers")
    for weight, value in values:
        weight.assign(value)


def _refuse_other_order(network: keras.Model) -> None:
    """Reject a dense layer behind a flatten.

    PyTorch flattens channel by channel, Keras position by position.
    """
    flatten = None
    for layer in leaves(network):
        if isinstance(layer, keras.layers.Flatten) and any(size != 1 for size in layer.input.shape[1:-1]):
            flatten = layer
        elif flatten and isinstance(layer, keras.layers.Dense):
            raise WeightsError(
                f"{network.name}: {flatten.name} orders its values otherwise than PyTorch does; pool before it"
            )


def _value(layer: keras.layers.Layer, weight: Any, module: Arrays, name: str) -> np.ndarray:
    """Return a weight's value in Keras's layout."""
    leaf = _IN_TORCH.get(weight.name, weight.name)
    if leaf not in module:
        raise WeightsError(f"{name}: has no {leaf} for {weight.path}; give the network the same layers")
    value, shape = module[leaf], tuple(weight.shape)
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D) and value.ndim == 4
    if is_depthwise and len(value) == shape[2] * shape[3]:  # [C m, 1, h, w] -> [h, w, C, m]
        value = value.reshape(shape[2], -1, *value.shape[2:]).transpose(2, 3, 0, 1)
    elif value.ndim == 4:  # [O, I, h, w] -> [h, w, I, O]
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:  # [O, I] -> [I, O]
        value = value.T
    if value.shape != shape:
        raise WeightsError(f"{name}.{leaf}: is {list(module[leaf].shape)}, which does not fit {weight.path} {list(shape)}; "
                           "give the weights of this network")  # fmt: skip
    return value


def save(network: keras.Model, path: Path, origin: Mapping[str, str]) -> None:
    """Write a .weights.h5 file with its origin, a few words by name, as attributes."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        unfinished = Path(folder, "converted.weights.h5")
        network.save_weights(unfinished)
        with h5py.File(unfinished, "a") as file:
            file.attrs.update(origin)
        files.atomic_write(path, unfinished.read_bytes())
