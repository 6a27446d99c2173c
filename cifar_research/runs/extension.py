"""More epochs for a run: only where that gives what a run of so many epochs from the start would have given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_research import config
from cifar_research.config import phases, targets
from cifar_research.optimization import schedules
from cifar_research.runtime import environment, programs
from cifar_research.runtime.errors import ConfigError

_EPOCHS = re.compile(r"training\.(phases\.\w+\.)?epochs")


def is_asked_for(before: Mapping[str, Any], cfg: Any) -> bool:
    """Say whether a config differs from the one that a run has in numbers of epochs alone."""
    changed = config.differences(before, cfg)
    return bool(changed) and all(_EPOCHS.fullmatch(key) for key in changed)


def check(
    before: Mapping[str, Any], cfg: Any, run_dir: Path, state: Mapping[str, Any] | None, ended: Mapping[str, Any] | None
) -> None:
    """Raise ConfigError, with the command to give instead, if a run cannot go on to other numbers of epochs.

    before: the config that the run has; state: what its last checkpoint remembers, None if there is none; ended: its
    report, None if it has none.
    """
    reason = _refusal(before, cfg, state, ended)
    if reason is None:
        return
    changed = config.differences(before, cfg)
    told = "\n".join(f"{key}: this run has {old!r}, the command says {new!r}" for key, (old, new) in changed.items())
    advice = "give back the epochs it has, or choose another hydra.run.dir"
    if ended is not None:
        allowed = ended["config"]["allow_targets"]
        words = [f"allow_targets=[{','.join(allowed)}]"] if allowed else []
        words += [f"{key}={new}" for key, (_, new) in changed.items()]
        command = [programs.program("train"), "--from-run", shlex.quote(str(run_dir)), *map(shlex.quote, words)]
        advice = f"a run of so many epochs from the start is {' '.join(command)}"
    raise ConfigError(f"{told}\nThe run in {run_dir} cannot go on to that: {reason}; {advice}")


def _refusal(
    before: Mapping[str, Any], cfg: Any, state: Mapping[str, Any] | None, ended: Mapping[str, Any] | None
) -> str | None:
    """Return why a run that goes on would not give what one from the start gives, None if it would."""
    if ended is not None and ended["status"] in ("diverged", "pruned"):
        return f"it has ended as {ended['status']}"
    if state is None:
        return "its checkpoints are gone"
    old, new = phases.plan(before), phases.plan(cfg)
    last, current = len(new) - 1, state["phase"]
    if old[:-1] != new[:-1]:
        return f"only the last phase, {new[-1].name}, may have other epochs"
    done = state["epoch"] - state["phase_epochs"][-1]
    if current == last and new[-1].epochs < done:
        return f"it has trained for {done} epochs already"
    patience, best = cfg.training.patience, state["best"]
    if patience and best and state["epoch"] - max(best["epoch"], state["phase_epochs"][-1]) >= patience:
        return f"training.patience={patience} has ended it after epoch {state['epoch']}, and would again"
    span = phases.schedule_span(new, last)
    if current in span:
        row = state["history"][-1] if state["history"] else {"step": 1, "epoch": 1}
        steps_per_epoch = row["step"] // row["epoch"]
        totals = [steps_per_epoch * sum(plan[number].epochs for number in span) for plan in (old, new)]
        environment.import_tensorflow()
        if schedules.looks_at_total(targets.instantiate(cfg.schedule), totals, steps_per_epoch):
            return (
                f"its learning rates, by schedule={targets.name(cfg.schedule._target_)}, depend on the number of epochs"
            )
    return None
