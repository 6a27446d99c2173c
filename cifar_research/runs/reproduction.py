"""`--from-run FOLDER`: repeat a run from its report.json; `--verify`: compare the results."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_research.config import sweep
from cifar_research.config.identity import PLUGIN_GROUPS, Identity, changes_text
from cifar_research.config.overrides import is_mapping_of, quoted
from cifar_research.config.schema import data_section
from cifar_research.data import cifar, datasets
from cifar_research.display import console
from cifar_research.runs import checkout, report
from cifar_research.runs.metrics import difference_interval
from cifar_research.runtime.errors import ConfigError, DataError

_FEWEST = 10  # fewest test images for an interval of the difference
IDENTICAL, DIFFERENT, WITHIN_NOISE = 0, 1, 3  # exit codes of --verify
# data=… sets the name; a cache folder is specific to a machine.
_LEFT_OUT = ("data.name", "data.cache_dir")


@dataclass(frozen=True)
class Original:
    """The run to repeat: its report.json, and whether to compare the results at the end."""

    folder: Path
    report: dict[str, Any]
    is_verified: bool

    def differences(self) -> list[str]:
        """Return a sentence for each version that differs and may change the results."""
        here, there = dict(report.versions()), dict(self.report["versions"])
        code, git = checkout.read(Path(__file__).parent), self.report["git"]
        if code and git:
            here["the checkout"], there["the checkout"] = code.commit[:12], git["commit"][:12]
            digests = code.digest, git.get("changes_sha256")
            here[checkout.PATCH], there[checkout.PATCH] = ((digest or "none")[:12] for digest in digests)
        return [
            f"{name} is {here.get(name, 'missing')} here and was {version} in {self.folder}; results may differ"
            for name, version in there.items()
            if here.get(name) != version
        ]

    def check(self, identity: Identity, run_dir: Path) -> None:
        """Raise ConfigError for the original's own folder, or for another config with --verify."""
        if run_dir.resolve() == self.folder.resolve():
            raise ConfigError(f"--from-run: {run_dir} is the run to repeat; choose another hydra.run.dir")
        if self.is_verified and (changed := Identity(self.report["config"]).differences(identity)):
            raise ConfigError(f"{changes_text(changed)}\n--verify: these overrides change the config; remove them")

    def verdict(self, result: Mapping[str, Any]) -> tuple[int, str]:
        """Return the exit code and sentence for how a run's results compare with the original's.

        Identical: the same losses and weights. Within noise: the 95 % confidence interval of the difference of the test
        accuracies, as of independent images, contains 0, or there are too few images for an interval.
        """
        if result["status"] != "completed":
            return DIFFERENT, f"Not reproduced: this run has ended as {result['status']}, {self.folder} was completed."
        same = [result[split] == self.report[split] for split in ("train", "val", "test")]
        if all(same) and result["weights_sha256"] == self.report["weights_sha256"]:
            return IDENTICAL, f"Identical: losses, accuracies and all weights equal those of {self.folder}, to the bit."
        accuracies, sizes = zip(
            *((run["test"]["accuracy"], run["data"]["sizes"]["test"]) for run in (result, self.report)), strict=True
        )
        text = f"test accuracy {accuracies[0]:.4f}, {accuracies[1]:.4f} in {self.folder}"
        cause = self._other_cause(result)
        if min(sizes) < _FEWEST:
            return WITHIN_NOISE, f"Not identical: {text}; {min(sizes)} test images are too few to say more.{cause}"
        low, high = difference_interval(*accuracies, *sizes)
        text += f"; the 95 % interval of the difference is {low:.4f} to {high:.4f}"
        if low <= 0 <= high:
            return WITHIN_NOISE, f"Within noise, not identical: {text}.{cause}"
        return DIFFERENT, f"Not reproduced: {text}, which excludes 0.{cause}"

    def _other_cause(self, result: Mapping[str, Any]) -> str:
        if result["data"]["fingerprint"] != self.report["data"]["fingerprint"]:
            return " The images differ."
        there, here = self.report["hardware"], result["hardware"]
        for key in ("cpu", "device"):  # a job of a sweep has a share of the cores
            if there[key] != here[key]:
                return f" It ran on {there[key]}, and this run on {here[key]}."
        return ""


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], Original | None]:
    """Replace `--from-run FOLDER` by the overrides that repeat the run; return both.

    Raises ConfigError or ReportError if the run cannot be repeated.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--from-run", type=os.path.expanduser)
    parser.add_argument("--verify", action="store_true")
    try:
        given, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"--from-run: has no value ({error.message}); give the folder of a run") from error
    if given.from_run is None:
        if given.verify:
            raise ConfigError("--verify: compares a repeated run with the original; add --from-run <run>")
        return rest, None
    path = Path(given.from_run)
    original = report.read_report(path / "report.json")
    if original is None:
        raise ConfigError(f"--from-run: {path} has no report.json; give the folder of a run")
    if given.verify and original["status"] != "completed":
        raise ConfigError(f"--verify: {path} was not completed, it is {original['status']}; remove --verify")
    try:
        chosen = _chosen(rest)
        overrides = [*_overrides(original["config"], chosen), *data_dir_override(original, chosen, path)]
        return [*overrides, *rest], Original(path, original, given.verify)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--from-run: the config in {path / 'report.json'} is not a run's ({error!r}); give another run"
        ) from error


def data_dir_override(original: Mapping[str, Any], chosen: Set[str], run: Path) -> list[str]:
    """Return data.dir=… if nothing sets it and the run's data is still where it was found."""
    own, found_in = original["config"]["data"], original["data"]["found_in"]
    is_given = os.path.isdir(str(own.get("dir"))) or (own["name"] != "images" and os.environ.get("CIFAR_DATA_DIR"))
    if not found_in or is_given or {"data", "data.dir"} & chosen:
        return []
    folder = str(cifar.folder_of(found_in))
    try:
        data = datasets.load(data_section(own, dir=folder, cache_dir=None, download=False))
        is_same = data.fingerprint == original["data"]["fingerprint"]
    except DataError:
        is_same = False
    if not is_same:
        console.note(f"data.dir: the data of {run} is no longer in {found_in}; set data.dir=<folder>")
        return []
    console.note(f"The data is in {folder}, where {run} found it")
    return [f"data.dir={quoted(folder)}"]


def _chosen(rest: Sequence[str]) -> set[str]:
    """Return the keys and groups that the command line or its sweep option sets."""
    keys = {word.lstrip("+~").partition("=")[0] for word in rest if "=" in word or word.startswith("~")}
    for word in rest:
        if is_mapping_of(word, (*PLUGIN_GROUPS, "augmentation", "data", "training")):
            raise ConfigError(f"--from-run: {word} sets keys of a group; give them one by one, as in model.dropout=0.1")
    if "sweep" in keys:
        overrides = [word for word in rest if word.startswith(("sweep=", "hydra.searchpath="))]
        keys |= set(sweep.swept_keys(overrides))
    if "experiment" in keys and "experiment=null" not in rest:
        raise ConfigError("--from-run: experiment= would replace everything that is repeated; remove one of them")
    return keys


def _overrides(content: Mapping[str, Any], chosen: Set[str] = frozenset()) -> list[str]:
    """Return the overrides that compose a config, without using any preset.

    chosen: keys and groups with other values. Such a group takes all values from its option; `training` only the phases
    and their epochs.
    """
    data, training = content["data"], dict(content["training"])
    is_elsewhere = data["name"] != "images" and not Path(str(data["dir"])).is_dir()
    left_out = {*_LEFT_OUT, "data.dir"} if is_elsewhere else set(_LEFT_OUT)
    sections = {"data": data, "training": training}
    phases = training.pop("phases")
    overrides = [f"name={_text(content['name'])}", f"seed={_text(content['seed'])}"]
    for group in (*PLUGIN_GROUPS, "augmentation"):
        # Values take precedence over options in any order.
        overrides += [] if group in chosen else [f"~{group}", f"+{group}={_text(content[group])}"]
    if "training" in chosen:
        del training["epochs"]
    else:
        # All phases at once: Hydra cannot add a single one. Remove `scratch`, since merging would keep its position.
        overrides += ["~training.phases.scratch", f"++training.phases={_text(phases)}"]
    if "data" in chosen:
        del sections["data"]
    else:
        overrides.append(f"data={data['name']}")
    sections |= {name: content[name] for name in ("evaluation", "batch_norm", "features", "tensorboard")}
    for section, settings in sections.items():
        overrides += [
            f"{section}.{key}={_text(value)}" for key, value in settings.items() if f"{section}.{key}" not in left_out
        ]
    # The command line takes precedence over a sweep's file.
    return [word for word in overrides if word.partition("=")[0] not in chosen]


def _text(value: Any) -> str:
    """Return a value in the grammar of Hydra's command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_text, value)) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
