"""Plug-in nodes of the config: `_target_` names a factory, and the other keys are held against its signature.

A `_target_` is code that runs, and a config may come from a stranger. So only our own factories are called, and what
the user has allowed: who typed the command says `allow_targets=[my_lab]` there, or has set $CIFAR_ALLOW_TARGETS. That
is a property of this process and not of a config, since a config that could allow its own targets would be worth no
check at all: `config.compose` believes the command line alone, and what a folder or a file says of it is left out.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

ALLOWING_VARIABLE = "CIFAR_ALLOW_TARGETS"
# Those that hold factories and nothing that would run or fetch what it is told.
_PACKAGE = __package__.partition(".")[0]
_OURS = tuple(
    f"{_PACKAGE}.{name}"
    for name in (
        "augmentation", "models.backbones.airbench", "models.backbones.cnn", "models.backbones.pretrained",
        "models.heads", "optimization.losses", "optimization.optimizers", "optimization.schedules",
        "sweeps.launchers.local", "sweeps.launchers.ray", "sweeps.launchers.slurm",
    )
)  # fmt: skip
_allowed = {name.strip() for name in os.environ.get(ALLOWING_VARIABLE, "").split(",") if name.strip()}


def allow(names: typing.Iterable[str]) -> None:
    """Let the configs of this process name what is in these packages or modules, too; ValueError if one is no name."""
    names = list(names)
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            raise ValueError(f"allow_targets: {name!r} is no name of a package or a module, like my_lab")
    _allowed.update(names)


def refusals(key: str, node: Any) -> list[str]:
    """Return what a node may not call, a sentence each, its nested nodes as well; imports nothing but our own."""
    if isinstance(node, (DictConfig, ListConfig)):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, list):
        return [problem for number, item in enumerate(node) for problem in refusals(f"{key}.{number}", item)]
    if not isinstance(node, dict):
        return []
    problems = [problem for name, item in node.items() for problem in refusals(f"{key}.{name}", item)]
    target = node.get("_target_")
    if target and not (isinstance(target, str) and (_is_allowed(target) or _is_ours(target))):
        name = str(target).partition(".")[0]
        what = f"{key}._target_: {target!r} is"
        if name == _PACKAGE:
            return [*problems, f"{what} no factory of {name}, and a config may run no other code; choose an option"]
        problems.append(
            f"{what} neither a factory of {_PACKAGE} nor of a package you have allowed, and a config may run no other "
            f"code; if you trust it, set {ALLOWING_VARIABLE}={name}, or add allow_targets=[{name}] where overrides are taken"
        )
    return problems


def _is_allowed(target: str) -> bool:
    return any(target.startswith(f"{name}.") for name in _allowed)


def _is_ours(target: str) -> bool:
    """Say whether a target is a name in one of our modules of factories, and not of something they import."""
    module, _, name = target.rpartition(".")
    if target in _OURS:
        return True  # and `check` says that it is a module
    if module not in _OURS or name.startswith("_"):
        return False
    found = getattr(importlib.import_module(module), name, None)
    return found is None or str(getattr(found, "__module__", "")).startswith(f"{_PACKAGE}.")


def range_problem(value: float | None, ends: str, low: float, high: float = math.inf) -> str | None:
    """Return why a number is not in a range, None if it is, or is None itself.

    ends: as in mathematics, `[)` for low <= value < high; a number that is not finite is in no range.
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


def check_range(ends: str, low: float, high: float = math.inf, /, **values: float | None) -> None:
    """Raise ValueError, naming the setting, if one of a factory's numbers is not in a range; see range_problem."""
    for name, value in values.items():
        if problem := range_problem(value, ends, low, high):
            raise ValueError(f"{name}: {problem}")


def name(target: str) -> str:
    """Return what a factory is called: one of ours by its own name, another by all of it, since names may be shared."""
    return target.rpartition(".")[2] if target.startswith(f"{_PACKAGE}.") else target


def instantiate(node: Any) -> Any:
    """Call the factory that a plug-in node names; ValueError, in its words, if it may not or refuses its settings."""
    if problems := refusals("config", node):
        raise ValueError(problems[0].removeprefix("config."))
    try:
        return hydra_instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        known = isinstance(cause, ValueError) or cause is None
        raise ValueError(
            str(cause or error).replace("\n", " ") if known else f"{node._target_}: {said(cause)}"
        ) from error


def said(error: BaseException) -> str:
    """Return what an error of a user's code says, in a line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    place = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}{place}"


def check(key: str, node: Any) -> list[str]:
    """Return what is wrong with a node, a sentence each: by its factory's signature, then by the factory's rules."""
    if not isinstance(node, DictConfig) or not node.get("_target_"):
        return [f"{key}: {node!r} names no factory; give it a _target_, or choose an option: {key}=…"]
    if problems := refusals(key, node):
        return problems
    target = str(node._target_)
    module, _, name = target.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError) as error:
        return [f"{key}._target_: cannot import {target!r} ({error}); is its folder on PYTHONPATH?"]
    except Exception as error:  # noqa: BLE001 — a user's module may raise any kind
        if not isinstance(error, AttributeError) or module not in sys.modules:
            return [f"{key}._target_: cannot import {target!r}: {said(error)}"]
        public = [k for k, v in vars(sys.modules[module]).items() if inspect.isfunction(v)]
        return [f"{key}._target_: module {module!r} has no {name!r}{nearest(name, public)}"]
    if not callable(factory):
        return [f"{key}._target_: {target!r} is a {type(factory).__name__}; name a function"]
    signature = inspect.signature(factory)
    problems = []
    named = [one for one in signature.parameters.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    takes_more = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    hints = {parameter.name: _hint(factory, parameter) for parameter in named}
    for setting, value in OmegaConf.to_container(node, resolve=True).items():
        if setting == "_target_" or (setting not in hints and takes_more):
            continue
        if setting not in hints:
            hint = nearest(setting, hints)
            drop = "" if "did you mean" in hint else f"; if it is a preset's, leave it out with ~{key}.{setting}"
            problems.append(f"{key}.{setting}: {name} has no parameter {setting!r}{hint}{drop}")
        elif not fits(value, hints[setting]):
            wanted = inspect.formatannotation(hints[setting]).replace("typing.", "")
            problems.append(f"{key}.{setting}: {value!r} is not of type {wanted}")
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in node:
            problems.append(f"{key}.{parameter.name}: {name} needs a value for it; add +{key}.{parameter.name}=…")
    if not problems:
        try:
            instantiate(node)
        except ValueError as error:
            is_of_setting = str(error).partition(":")[0] in hints
            problems += [f"{key}.{error}" if is_of_setting else f"{key}: {error}"]
    return problems


def parameters(node: Any) -> dict[str, inspect.Parameter]:
    """Return what a plug-in node's factory takes, by name; nothing if it may not be called or is not there."""
    target = str(node.get("_target_") or "") if isinstance(node, DictConfig) else ""
    module, _, name = target.rpartition(".")
    if not module or refusals("config", node):
        return {}
    try:
        return dict(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except Exception:  # noqa: BLE001 — any kind, of a user's own module; `check` says it
        return {}


def hint(node: Any, setting: str) -> Any:
    """Return the type of what a plug-in node's factory takes by this name, Any if it is not known."""
    parameter = parameters(node).get(setting)
    if parameter is None:
        return Any
    module, _, name = str(node._target_).rpartition(".")
    return _hint(getattr(sys.modules[module], name), parameter)


def _hint(factory: Any, parameter: inspect.Parameter) -> Any:
    """Return a parameter's type; Any if it has none, or one that is only known to type checkers."""
    if parameter.annotation is parameter.empty:
        return Any
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return eval(parameter.annotation, dict(vars(inspect.getmodule(factory))))  # noqa: S307 — the module's own text
    except NameError:
        return Any


def fits(value: Any, hint: Any) -> bool:
    """Say whether a YAML value fits a factory's type hint: an int counts as a float, a bool not as an int."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, Sequence, tuple):
        return isinstance(value, (list, tuple)) and all(fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    return isinstance(value, hint) if isinstance(hint, type) else True


def nearest(name: str, valid: typing.Iterable[str], most: int = 12) -> str:
    """Return the end of a sentence that helps with an unknown name: the closest valid one, or all if at `most` so many."""
    valid = sorted(valid)
    if found := closest(name, valid):
        return f"; did you mean {found!r}?"
    return f"; it has {', '.join(valid)}" if valid and len(valid) <= most else ""


def closest(name: str, valid: typing.Iterable[str], cutoff: float = 0.5) -> str:
    """Return the valid name that was probably meant, an empty text if none is close.

    Before the spelling counts what it stands for: mse is mean_squared_error, cos cosine, horizontal_flip flip.
    """
    names = {str(one).lower(): str(one) for one in valid}
    low = name.lower()
    words = set(low.split("_"))
    initials = [one for one in names if "_" in one and "".join(part[:1] for part in one.split("_")) == low]
    parts = [one for one in names if low and (words >= (own := set(one.split("_"))) or words <= own)]
    begun = [one for one in names if len(low) >= 3 and one.startswith(low)]
    for candidates, least in ((initials, 0.0), (parts, 0.0), (begun, 0.0), (names, cutoff)):
        if found := difflib.get_close_matches(low, candidates, n=1, cutoff=least):
            return names[found[0]]
    return ""
