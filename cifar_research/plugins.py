"""Plug-in nodes of the config: `_target_` names a factory, and the other keys are held against its signature."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf


def instantiate(node: Any) -> Any:
    """Call the factory that a plug-in node names; ValueError, in its words, if it refuses its settings."""
    try:
        return hydra_instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        message = str(cause) if isinstance(cause, ValueError) else str(error).replace("\n", " ")
        raise ValueError(message) from error


def check(key: str, node: Any) -> list[str]:
    """Return what is wrong with a node, a sentence each: by its factory's signature, then by the factory's rules."""
    if not isinstance(node, DictConfig) or not node.get("_target_"):
        return [f"{key}: {node!r} names no factory; give it a _target_, or choose an option: {key}=…"]
    target = str(node._target_)
    module, _, name = target.rpartition(".")
    try:
        factory = getattr(__import__(module, fromlist=[name]), name)
    except (ImportError, ValueError) as error:
        return [f"{key}._target_: cannot import {target!r} ({error}); is its folder on PYTHONPATH?"]
    except AttributeError:
        public = [k for k, v in vars(__import__(module, fromlist=[name])).items() if inspect.isfunction(v)]
        return [f"{key}._target_: module {module!r} has no {name!r}{nearest(name, public)}"]
    if not callable(factory):
        return [f"{key}._target_: {target!r} is a {type(factory).__name__}; name a function"]
    signature = inspect.signature(factory)
    problems = []
    hints = {parameter.name: _hint(factory, parameter) for parameter in signature.parameters.values()}
    for setting, value in OmegaConf.to_container(node, resolve=True).items():
        if setting == "_target_":
            continue
        if setting not in signature.parameters:
            hint = nearest(setting, signature.parameters)
            problems.append(f"{key}.{setting}: {name} has no parameter {setting!r}{hint}")
        elif not _fits(value, hints[setting]):
            wanted = _type_name(hints[setting])
            problems.append(f"{key}.{setting}: {value!r} is not of type {wanted}")
    for parameter in signature.parameters.values():
        if parameter.default is parameter.empty and parameter.name not in node:
            problems.append(f"{key}.{parameter.name}: {name} needs a value for it; add +{key}.{parameter.name}=…")
    if not problems:
        try:
            instantiate(node)
        except ValueError as error:
            problems += [f"{key}.{error}"]
    return problems


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


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a YAML value fits a factory's type hint: an int counts as a float, a bool not as an int."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, Sequence, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _type_name(one) for one in arguments)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (list, Sequence, tuple):
        return f"list of {_type_name(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """Return the end of a sentence that helps with an unknown name: the closest valid one, or all if they are few."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has {', '.join(valid)}" if valid and len(valid) <= 12 else ""
