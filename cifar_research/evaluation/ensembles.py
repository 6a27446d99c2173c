"""Evaluate runs as one: the mean of their probabilities (Lakshminarayanan et al. 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config import permissions
from cifar_research.display import console, document
from cifar_research.evaluation import against, images, measures, scores, sections
from cifar_research.evaluation.run import completed, folder_for, write_json
from cifar_research.inference import trained
from cifar_research.runs.report import versions
from cifar_research.runtime.errors import ConfigError, DataError


def groups(paths: Sequence[str]) -> list[list[Path]]:
    """Return the runs of each ensemble: the named runs, and each setting's runs in a sweep.

    A folder or glob with several runs is a sweep; runs of a setting differ by their seed only. A single run of a setting is
    left out with a note. ConfigError if no ensemble is left, RunError or DataError if one's runs do not fit together.
    """
    named: dict[Path, Path] = {}
    others: dict[Any, dict[Path, Path]] = {}
    for path in paths:
        inside = completed(path)
        for run in inside:
            chosen = named if len(inside) == 1 else others.setdefault((run.group, run.repeat[1]), {})
            chosen[run.folder.resolve()] = run.folder
    members = [list(group.values()) for group in (named, *others.values()) if group]
    ensembles = [group for group in members if len(group) > 1]
    if not ensembles:
        raise ConfigError(
            "--ensemble: needs two completed runs or more that differ by the seed only; give more runs, or a sweep of seeds"
        )
    for group in ensembles:
        _reports(group)
    for alone in (group for group in members if len(group) == 1):
        console.note(f"{alone[0]}: is left out; no other run differs from it by the seed only")
    return ensembles


def evaluate(runs: Sequence[Path], overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Evaluate runs as one classifier; return the results, and text for a terminal.

    overrides: of the data, see images.load. Writes ensemble_<digest>.{json,md,html} into evaluation/ of the first run, or
    beside the results on other images. ConfigError, DataError, RunError or ReportError, raised before that.
    """
    reports = _reports(runs)
    data, other = images.load(reports[runs[0]], overrides)
    if data.left_out:
        console.note(data.file_summary())
    pixels, labels = measures.arrays(data.test)
    ensemble = trained.load(runs, allow_targets=permissions.allowed_packages(overrides))
    assert isinstance(ensemble, trained.Ensemble)
    logits = []
    for member in console.counted("Classifying", ensemble.members):
        logits.append(member.logits(pixels)[:, [member.classes.index(name) for name in data.classes]])
    pooled = ensemble.logits(pixels)
    counts = np.array(reports[runs[0]]["data"]["train_counts"])
    group = against.group(np.stack(logits), labels, [report["seed"] for report in reports.values()])
    result: dict[str, Any] = {
        **measures.calibrated(ensemble, data, pooled, is_own=other is None),
        "test": scores.summary(pooled, labels, counts),
        "members": [
            {"run": str(run), "seed": seed, **scores.summary(own, labels, counts)}
            for run, seed, own in zip(runs, group["seeds"], logits, strict=True)
        ],
        "mean": {"accuracy": group["mean"], "interval": group["interval"]},
        "disagreement": disagreement(np.stack(logits)),
        "data": images.description(reports, data, is_own=other is None),
        "classes": list(data.classes),
        "versions": versions(),
    }
    path = trained.ensemble_file(reports)
    path = folder_for(path.parent, other, data.fingerprint) / path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = sections.ensemble(result)
    document.write(path.parent, path.stem, f"An ensemble of {len(runs)} runs", shown)
    write_json(path, result)
    text = sections.as_text(shown, ("Accuracy", "Calibration"))
    return result, f"{text}\n\nEverything is in {path.with_suffix('')}.html, .md and .json"


def disagreement(logits: np.ndarray) -> float:
    """Return how often two members predict different classes (Fort et al. 2019).

    It is the share of images, mean over pairs. logits: float [R, N, K], of two members or more.
    """
    predictions = logits.argmax(2)
    return float(np.mean([(first != second).mean() for first, second in itertools.combinations(predictions, 2)]))


def _reports(runs: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Return the runs' reports; DataError unless all have the same images, held out alike."""
    reports = trained.read_members(runs)
    first = runs[0]
    for run, report in reports.items():
        for key in ("fingerprint", *images.SPLIT_KEYS):
            value, expected = ((each["data"] | each["config"]["data"]).get(key) for each in (report, reports[first]))
            if value != expected:
                raise DataError(
                    f"{run}: has data.{key}={value}, and {first} has {expected}; give runs of the same images and split"
                )
    return reports
