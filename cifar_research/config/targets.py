"""Plug-ins: sections whose `_target_` names a factory; the other keys are its parameters.

A `_target_` runs code, and a config may not be trustworthy. Only factories of the framework and of packages that the
user allows are called: `allow_targets=[my_lab]` on the command line, or $CIFAR_ALLOW_TARGETS. A config file cannot set
allow_targets: otherwise it could allow its own targets.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from cifar_research.runtime.errors import ConfigError, refuse

ALLOWING_VARIABLE = "CIFAR_ALLOW_TARGETS"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_IN_YAML = {"None": "null", "True": "true", "False": "false"}
# Modules of factories; none of these runs or downloads anything that its settings name.
_PACKAGE = __package__.partition(".")[0]
_OURS = tuple(
    f"{_PACKAGE}.{name}"
    for name in (
        "augmentation", "display.trackers", "models.backbones.airbench", "models.backbones.cnn",
        "models.backbones.efficientnet_lite", "models.backbones.pretrained", "models.heads", "optimization.losses",
        "optimization.optimizers", "optimization.schedules", "sweeps.launchers.local", "sweeps.launchers.ray",
        "sweeps.launchers.slurm",
    )
)  # fmt: skip


def allowed(names: typing.Iterable[str] = ()) -> frozenset[str]:
    """Return the packages that may be called: `names` and those of $CIFAR_ALLOW_TARGETS."""
    of_environment = os.environ.get(ALLOWING_VARIABLE, "").split(",")
    return frozenset(names) | {name.strip() for name in of_environment if name.strip()}


def refusals(key: str, node: Any, allowed: frozenset[str]) -> list[str]:
    """Return a problem for each forbidden `_target_`; import only the framework's modules."""
    if isinstance(node, (DictConfig, ListConfig)):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, list):
        return [problem for number, item in enumerate(node) for problem in refusals(f"{key}.{number}", item, allowed)]
    if not isinstance(node, dict):
        return []
    problems = [problem for name, item in node.items() for problem in refusals(f"{key}.{name}", item, allowed)]
    target = node.get("_target_")
    if target and not (isinstance(target, str) and _may_be_called(target, allowed)):
        name = str(target).partition(".")[0]
        what = f"{key}._target_: {target!r} is"
        if name == _PACKAGE:
            return [*problems, f"{what} not a factory of {name}, and a config may not run other code; choose an option"]
        problems.append(
            f"{what} not a factory of {_PACKAGE} or of an allowed package, and a config may not run other code; if you "
            f"trust it, add 'allow_targets=[{name}]' to the command, or set {ALLOWING_VARIABLE}={name}"
        )
    return problems


def _may_be_called(target: str, allowed: frozenset[str]) -> bool:
    """Return whether a target is of an allowed package, or defined, not imported, in one of our factory modules."""
    if any(target.startswith(f"{name}.") for name in allowed):
        return True
    module, _, name = target.rpartition(".")
    if module not in _OURS or name.startswith("_"):
        return False
    factory = getattr(importlib.import_module(module), name, None)
    return factory is None or getattr(factory, "__module__", "") == module


def range_problem(value: float | None, ends: str, low: float, high: float = math.inf) -> str | None:
    """Return why a number is out of range; None if it is in range or None.

    ends: as in mathematics, `[)` for low <= value < high. A number that is not finite is out of every range.
    """
    if value is None:
        return None
    fits_low = value >= low if ends[0] == "[" else value > low
    fits_high = value <= high if ends[1] == "]" else value < high
    if fits_low and fits_high and math.isfinite(value):
        return None
    lower = f"{'at least' if ends[0] == '[' else 'above'} {low}"
    upper = "finite" if high == math.inf else f"{'at most' if ends[1] == ']' else 'below'} {high}"
    return f"{value} is out of range; it must be {lower} and {upper}"


def _as_yaml(value: Any) -> str:
    return _IN_YAML.get(str(value), repr(value))  # OmegaConf makes a text of a boolean


def choice_problem(value: Any, choices: Sequence[Any]) -> str:
    """Return why a value is not one of the choices, with the nearest of them."""
    texts = [_IN_YAML.get(str(choice), str(choice)) for choice in choices]
    return f"{_as_yaml(value)} is not one of {', '.join(texts)}{nearest(str(value), texts, most=0)}"


def check_range(ends: str, low: float, high: float = math.inf, /, **values: float | None) -> None:
    """Raise ValueError, naming the setting, if a factory's number is out of range."""
    for name, value in values.items():
        if problem := range_problem(value, ends, low, high):
            raise ValueError(f"{name}: {problem}")


def name(target: str) -> str:
    """Return a factory's short name; the full target if it is not the framework's."""
    return target.rpartition(".")[2] if target.startswith(f"{_PACKAGE}.") else target


def error_text(error: BaseException) -> str:
    """Return one line for an error in a user's code: type, message and location."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if "site-packages" not in frame.filename] or stack
    location = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}{location}"


def build(key: str, node: Mapping[str, Any] | None, allowed: frozenset[str]) -> Any:
    """Call a section's factory and return its value; ConfigError has one line for each problem.

    key: the section's key, for messages. node: a plain mapping, first checked against the factory's signature.
    """
    if not isinstance(node, Mapping) or not node.get("_target_"):
        raise ConfigError(f"{key}: {node!r} has no _target_, the name of a factory; choose an option: {key}=…")
    refuse(refusals(key, node, allowed))
    target = str(node["_target_"])
    factory, problem = _factory(target)
    if problem:
        raise ConfigError(f"{key}._target_: {problem}")
    values = {setting: value for setting, value in node.items() if setting != "_target_"}
    refuse(_signature_problems(key, factory, values))
    try:
        return hydra_instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if not (isinstance(cause, ValueError) or cause is None):
            raise ConfigError(f"{key}: {target}: {error_text(cause)}") from error
        reason = str(cause or error).replace("\n", " ")
        is_of_setting = reason.partition(":")[0] in inspect.signature(factory).parameters
        raise ConfigError(f"{key}.{reason}" if is_of_setting else f"{key}: {reason}") from error


def _factory(target: str) -> tuple[Any, str | None]:
    """Return the function that a target names, and the problem if it cannot be used."""
    module, _, name = target.rpartition(".")
    try:
        imported = importlib.import_module(module)
        factory = getattr(imported, name, None)  # a module's own __getattr__ may import more
    except (ImportError, ValueError) as error:
        return None, f"cannot import {target!r} ({error}); correct the name, or add its folder to PYTHONPATH"
    except Exception as error:  # noqa: BLE001 — a user's module may raise any kind
        return None, f"cannot import {target!r}: {error_text(error)}"
    if callable(factory):
        return factory, None
    functions = [name for name, value in vars(imported).items() if inspect.isfunction(value)]
    return None, f"module {module!r} has no function {name!r}{nearest(name, functions)}"


def _signature_problems(key: str, factory: Callable[..., Any], values: Mapping[str, Any]) -> list[str]:
    name = getattr(factory, "__name__", str(factory))
    every = inspect.signature(factory).parameters.values()
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in every)
    named = [
        parameter for parameter in every if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    hints = {parameter.name: _hint(factory, parameter) for parameter in named}
    problems = []
    for setting, value in values.items():
        if setting not in hints and not takes_more:
            hint = nearest(setting, hints)
            remedy = f"{'' if hint.endswith('?') else '.'} If a preset sets it, remove it with ~{key}.{setting}"
            problems.append(f"{key}.{setting}: {name} has no parameter {setting!r}{hint}{remedy}")
        elif setting in hints and not fits(value, hints[setting]):
            problems.append(f"{key}.{setting}: {_mismatch(value, hints[setting])}")
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in values:
            problems.append(f"{key}.{parameter.name}: {name} needs a value; add +{key}.{parameter.name}=…")
    return problems


def parameters(node: Any, allowed: frozenset[str]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a section's factory by name; empty if it may not be called."""
    target = str(node.get("_target_") or "") if isinstance(node, (Mapping, DictConfig)) else ""
    if not target or refusals("config", node, allowed):
        return {}
    factory, problem = _factory(target)
    return {} if problem else dict(inspect.signature(factory).parameters)


def hint(node: Any, setting: str, allowed: frozenset[str]) -> Any:
    """Return the type of a parameter of a section's factory, Any if unknown."""
    parameter = parameters(node, allowed).get(setting)
    return Any if parameter is None else _hint(_factory(str(node["_target_"]))[0], parameter)


def _hint(factory: Any, parameter: inspect.Parameter) -> Any:
    """Return a parameter's type; Any if it has none that can be resolved."""
    if parameter.annotation is parameter.empty:
        return Any
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return eval(parameter.annotation, dict(vars(inspect.getmodule(factory))))  # noqa: S307 — the module's own text
    except NameError:
        return Any


def fits(value: Any, hint: Any) -> bool:
    """Return whether a YAML value fits a type hint: an int fits float, a bool does not fit int."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and arguments[-1] is not ...:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin in (list, Sequence, tuple):
        return isinstance(value, (list, tuple)) and all(fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    # YAML has no form of other types, such as Path: the factory gets what the file has.
    return isinstance(value, hint) if hint in (bool, str, list, tuple, dict, types.NoneType) else True


def _mismatch(value: Any, hint: Any) -> str:
    """Return why a value does not fit a type hint."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if all(typing.get_origin(part) is typing.Literal or part is types.NoneType for part in parts):
        return choice_problem(value, [option for part in parts for option in typing.get_args(part) or [None]])
    return f"takes {' or '.join(map(_kind, parts))}, not {_as_yaml(value)}; change the value"


def _kind(hint: Any) -> str:
    """Return a type hint in words."""
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(map(str, items))
    if origin in (list, Sequence) and items[:1] in ((int,), (float,), (str,)):
        return f"a list of {KINDS[items[0]].removeprefix('a ')}s"
    return (KINDS | {types.NoneType: "null"}).get(hint) or f"a {inspect.formatannotation(hint).replace('typing.', '')}"


def nearest(name: str, valid: typing.Iterable[str], most: int = 12) -> str:
    """Return a hint for an unknown name: the closest valid one, or all if at most `most`."""
    valid = sorted(valid)
    if match := closest(name, valid):
        return f"; did you mean {match!r}?"
    return f"; it has {', '.join(valid)}" if valid and len(valid) <= most else ""


def closest(name: str, valid: typing.Iterable[str]) -> str:
    """Return the valid name that begins with this one, shares parts with it or is spelled alike; "" if none is close."""
    names, low = {str(key).lower(): str(key) for key in valid}, name.lower()
    beginning = [key for key in names if key.startswith(low)]
    sharing = beginning or [key for key in names if f"_{low}" in key or key in low.split("_")]
    # In a short name one exchanged letter counts more: sdg is sgd.
    candidates, cutoff = (sharing, 0.0) if sharing and len(low) > 2 else (names, 0.65 if len(low) < 5 else 0.72)
    match = difflib.get_close_matches(low, candidates, n=1, cutoff=cutoff)
    return names[match[0]] if match else ""
