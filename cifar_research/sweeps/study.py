"""A search's study.db: its address, and what its trials show, read without writing."""

from __future__ import annotations

import itertools
import logging
import math
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from cifar_research.display.document import Part, Section
from cifar_research.runs.metrics import display_name

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

optuna.logging.set_verbosity(logging.WARNING)
STUDY = "study.db"
NAME = "sweep"  # of the study in it
_FEWEST = 10  # completed trials for importances
_NUM_BEST = 5  # trials that importances need, says Optuna


def escaped(folder: Path) -> str:
    """Return the path of a folder's study for an address."""
    # Escape only what URLs and Optuna interpret: some versions of SQLAlchemy do not decode the rest.
    return re.sub(r"[%?#{}]", lambda character: quote(character[0]), str(folder.absolute() / STUDY))


def section(folder: Path, heading: str, metric: str) -> Section:
    """Return a search's best trial, importances, a figure, and the command that shows all trials.

    metric: the one that its runs monitored.
    """
    try:
        creator = {"creator": lambda: sqlite3.connect(f"file:{escaped(folder)}?mode=ro", uri=True)}
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=creator)
        study = optuna.load_study(study_name=NAME, storage=storage)
        trials = study.get_trials(deepcopy=False)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        return Section(heading, [f"{folder / STUDY}: cannot be read ({reason}); restore it from a backup"])
    counts = Counter(trial.state.name.lower() for trial in trials)
    counted = ", ".join(f"{num} {state}" for state, num in counts.items())
    parts: list[Part] = [f"{len(trials)} trials: {counted}."]
    # Of a loss, the value is negative. A pruned trial has the value of its last epoch.
    values = {trial.number: trial.value or 0.0 for trial in trials if trial.state is TrialState.COMPLETE}
    if values:
        best = max(values, key=lambda number: values[number])
        parts += [
            f"The best validation {display_name(metric)} is {abs(values[best]):.4f}, of trial {best}, counted from 0.",
            _figure(values, display_name(metric)),
        ]
    if (num := len(values)) < _FEWEST or len(set(values.values())) == 1:
        parts.append(f"No importances: they need {_FEWEST} completed trials of different results; there are {num}.")
    else:
        num_best = max(_NUM_BEST, math.ceil(num / 10))
        shares = optuna.importance.get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=num_best / num)
        )
        parts.append([["setting", "importance"], *([key, f"{share:.2f}"] for key, share in shares.items())])
        parts.append(
            f"Importance: a setting's share in whether a trial is among the best {num_best} of {num} completed ones "
            "(PED-ANOVA, Watanabe et al. 2023). Few trials give a rough value."
        )
    command = shlex.join(["optuna-dashboard", f"sqlite:///{escaped(folder)}"])
    return Section(heading, [*parts, f"To see all trials in a browser: pip install optuna-dashboard, then {command}"])


def _figure(values: Mapping[int, float], name: str) -> Figure:
    """Return the value of each completed trial, by its number, and the best one so far."""
    from plotly.graph_objects import Figure  # takes a third of a second

    legend = {"orientation": "h", "y": -0.2}
    figure = Figure(layout={"xaxis_title": "trial", "yaxis_title": f"validation {name}", "legend": legend})
    best = [abs(value) for value in itertools.accumulate(values.values(), max)]
    figure.add_scatter(x=list(values), y=best, mode="lines", line_shape="hv", name="best so far")
    figure.add_scatter(x=list(values), y=list(map(abs, values.values())), mode="markers", name="completed trials")
    return figure
