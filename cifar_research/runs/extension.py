"""More epochs for a run, only if the result equals that of a run started with them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_research.config import phases, targets
from cifar_research.config.identity import Identity, changes_text
from cifar_research.config.phases import Phase
from cifar_research.config.settings import Settings
from cifar_research.optimization import schedules
from cifar_research.runtime import environment, programs
from cifar_research.runtime.errors import ConfigError

_EPOCHS = re.compile(r"training\.(phases\.\w+\.)?epochs")


def is_asked_for(before: Identity, now: Identity) -> bool:
    """Return whether two configs differ only in numbers of epochs."""
    changed = before.differences(now)
    return bool(changed) and all(_EPOCHS.fullmatch(key) for key in changed)


def check(
    before: Identity,
    settings: Settings,
    run_dir: Path,
    meta: Mapping[str, Any] | None,
    ended: Mapping[str, Any] | None,
) -> None:
    """Raise ConfigError, with an alternative, if a run cannot continue to other epochs.

    before: the run's own config. meta: of its last checkpoint, or None. ended: its report, or None.
    """
    reason = _refusal(phases.plan(before.content), settings, meta, ended)
    if reason is None:
        return
    changed = before.differences(settings.identity)
    advice = "keep its epochs, or choose another hydra.run.dir"
    if ended is not None:
        allowed = ended["config"]["allow_targets"]
        overrides = [f"allow_targets=[{','.join(allowed)}]"] if allowed else []
        overrides += [f"{key}={new}" for key, (_, new) in changed.items()]
        command = [programs.program("train"), "--from-run", shlex.quote(str(run_dir)), *map(shlex.quote, overrides)]
        advice = f"to train these epochs from the start, use {' '.join(command)}"
    raise ConfigError(f"{changes_text(changed)}\nhydra.run.dir: {run_dir} cannot change its epochs: {reason}; {advice}")


def _refusal(
    old: Sequence[Phase], settings: Settings, meta: Mapping[str, Any] | None, ended: Mapping[str, Any] | None
) -> str | None:
    """Return why continuing would differ from starting over, None if it would not."""
    if ended is not None and ended["status"] in ("diverged", "pruned"):
        return f"it has ended as {ended['status']}"
    if meta is None:
        return "its checkpoints are missing"
    new = settings.phases
    last, current = len(new) - 1, meta["phase"]
    if old[:-1] != new[:-1]:
        return f"only the last phase, {new[-1].name}, may change its epochs"
    whole = meta["history"][-1]["step"] if meta["history"] else 0
    done = meta["epoch"] - meta["phase_epochs"][-1] + (meta["step"] > whole)  # with an epoch that it has begun
    if current == last and new[-1].epochs < done:
        return f"it has trained in {done} epochs already"
    patience, best = settings.training.patience, meta["best"]
    if patience and best and meta["epoch"] - max(best["epoch"], meta["phase_epochs"][-1]) >= patience:
        return f"training.patience={patience} has stopped it after epoch {meta['epoch']}"
    if current == last:
        row = meta["history"][-1] if meta["history"] else {"step": 1, "epoch": 1}
        steps_per_epoch = row["step"] // row["epoch"]
        totals = [steps_per_epoch * plan[last].epochs for plan in (old, new)]
        environment.import_tensorflow()
        if schedules.looks_at_total(settings.schedule, totals, steps_per_epoch):
            name = targets.name(settings.content["schedule"]["_target_"])
            return f"with schedule={name} its learning rates depend on the number of epochs"
    return None
