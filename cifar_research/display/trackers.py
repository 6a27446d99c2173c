"""Trackers: services that record runs.

Where a service is and who may write to it come from its own environment variables: with an address in a config, a
stranger's run could ask for the user's keys.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cifar_research.config.contracts import TrackedRun
from cifar_research.runtime.programs import pip

_KEY = "cifar_research.key"  # MLflow's tag
_MOST_PARAMETERS, _LONGEST_VALUE = 100, 6000  # MLflow's limits
_ENDINGS = {"completed": "FINISHED", "pruned": "KILLED", "stopped": "KILLED"}  # MLflow's words; others: FAILED
_UPLOAD_SECONDS = 50  # W&B's own limit, below that of tracking.py


def none() -> None:
    """Track nothing."""


def mlflow(*, experiment: str | None = None) -> MLflow:
    """Record the run in MLflow.

    experiment: The experiment in MLflow; null is the run's `name`.
    """
    _require("mlflow", "MLflow")
    return MLflow(experiment)


def wandb(*, project: str | None = None, entity: str | None = None) -> WandB:
    """Record the run in Weights & Biases.

    project: The project in W&B; null is the run's `name`.
    entity: The user or team that the project belongs to; null is your default.
    """
    _require("wandb", "Weights & Biases")
    return WandB(project, entity)


def _require(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{package} needs {name}; install it with {pip()} install 'cifar_research[{package}]'")


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, (int, float))}


class MLflow:
    """A run in MLflow, found again by a tag with its key."""

    def __init__(self, experiment: str | None) -> None:
        self._experiment = experiment
        self._client: Any = None
        self._id = ""
        self._steps = {0}  # of the epochs that are recorded

    def start(self, run: TrackedRun) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        for library in ("mlflow", "urllib3"):  # they report each table made, and each connection tried again
            logging.getLogger(library).setLevel(logging.ERROR)
        self._client, name = MlflowClient(), self._experiment or run.config["name"]
        if (experiment := self._client.get_experiment_by_name(name)) is None:
            with contextlib.suppress(MlflowException):  # another job of the sweep may have just created it
                self._client.create_experiment(name)
            experiment = self._client.get_experiment_by_name(name)
        entries = self._client.search_runs([experiment.experiment_id], f"tags.`{_KEY}` = '{run.key}'")
        if not entries:
            tags = {_KEY: run.key} | ({"sweep": run.sweep} if run.sweep else {})
            entries = [self._client.create_run(experiment.experiment_id, tags=tags, run_name=run.name)]
        self._id, parameters = entries[0].info.run_id, entries[0].data.params
        self._client.update_run(self._id, status="RUNNING")
        # A parameter cannot be changed: after more epochs, config.yaml and report.json have the new number.
        new = [Param(key, str(run.settings[key])[:_LONGEST_VALUE]) for key in run.settings.keys() - parameters.keys()]
        for begin in range(0, len(new), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=new[begin : begin + _MOST_PARAMETERS])
        self._client.log_text(self._id, yaml.safe_dump(dict(run.config), sort_keys=False), "config.yaml")
        self._steps |= {point.step for point in self._client.get_metric_history(self._id, "epoch")}
        for row in run.history:
            self.epoch(row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        if row["step"] not in self._steps:
            self._log(_numbers(row), row["step"])
            self._steps.add(row["step"])

    def finish(self, status: str, results: Mapping[str, float], files: Sequence[Path]) -> None:
        self._log(results, max(self._steps))
        for path in files:
            self._client.log_artifact(self._id, str(path), "figures" if path.parent.name == "figures" else None)
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, _ENDINGS.get(status, "FAILED"))

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


class WandB:
    """A run in Weights & Biases, whose id is the run's key."""

    def __init__(self, project: str | None, entity: str | None) -> None:
        self._project, self._entity = project, entity
        self._run: Any = None

    def start(self, run: TrackedRun) -> None:
        import wandb

        if wandb.setup().settings.mode in (None, "online"):
            wandb.login(prompt=False)  # raises without a key, where `init` would ask for one on the terminal
        self._run = wandb.init(
            project=self._project or run.config["name"],
            entity=self._entity,
            id=run.key,
            name=run.name,
            group=run.sweep,
            config=dict(run.config),
            dir=os.environ.get("WANDB_DIR", run.folder),
            resume="allow",
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, finish_timeout=_UPLOAD_SECONDS),
        )
        for row in run.history:
            self.epoch(row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        # Offline, W&B does not know what an earlier process has logged: the whole history is written again.
        if row["step"] >= self._run.starting_step:
            self._run.log(_numbers(row), step=row["step"], commit=True)

    def finish(self, status: str, results: Mapping[str, float], files: Sequence[Path]) -> None:
        self._run.summary.update({**results, "status": status})
        for path in files:  # as copies: W&B would make links, and say so
            folder = Path(self._run.dir, "figures" if path.parent.name == "figures" else "")
            folder.mkdir(exist_ok=True)
            self._run.save(shutil.copy(path, folder), base_path=self._run.dir, policy="now")
        self._run.finish(exit_code=0 if status in ("completed", "pruned") else 1)
