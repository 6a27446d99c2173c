"""A sweep: many runs of one command in one folder, continued after any interruption.

Start reading at `run`. A job is the command line of one run and can be repeated alone. `jobs.jsonl` has the plan and
the states; the results are in the jobs' folders.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cifar_research.config import rules
from cifar_research.config.schema import data_section
from cifar_research.config.sweep import SweepSettings
from cifar_research.data import datasets
from cifar_research.display import console
from cifar_research.runs.ledger import LEDGER, Job, read
from cifar_research.runtime import locks, programs
from cifar_research.runtime.errors import ConfigError
from cifar_research.runtime.files import atomic_write
from cifar_research.runtime.signals import stop_signals
from cifar_research.sweeps.execution import Execution, Grid, write_report
from cifar_research.sweeps.keep import Keeper
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.live import Live, resume_command
from cifar_research.sweeps.plan import Plan


def run(settings: SweepSettings, *, unlocks: bool = False) -> int:
    """Run all jobs that are not complete; return the exit code.

    Exit codes: 0 all have ended, 1 some failed, 124 out of time, 128 + n stopped by signal n. unlocks: see locks.Lock.
    Before anything is written, raises ConfigError if a job, the launcher or the folder is invalid, DataError if data is
    missing, LockedError if another sweep runs in the folder.
    """
    plan, folder, launcher, trials = Plan.of(settings), settings.folder, settings.launcher, settings.sweep.trials
    if trials is None:
        examples, space = plan.grid(), None
    else:
        from cifar_research.sweeps import search  # imported here because it takes a third of a second

        space = search.space(plan)
        search.check(folder, space)
        _refuse_other_search(folder, plan)
        examples = [plan.job(row) for row in search.corners(space)]
    notes = _without_effect(plan, examples)
    _refuse_folder(folder, is_search=trials is not None)
    with (
        locks.only_process_in(folder, key="hydra.sweep.dir", what="sweep runs", unlocks=unlocks) as keep,
        contextlib.ExitStack() as started,
        contextlib.closing(launcher),
    ):
        launcher.open(folder)
        ledger = Ledger.open(folder, settings.overrides, examples if space is None else None, examples)
        if launcher.is_on_this_machine:
            _check_data(ledger.jobs if space is None else examples)
        started.enter_context(_undone_if_refused(keep, ledger))
        ledger.write()
        for line in ledger.news:
            console.tell(line)
        for line in notes:
            console.note(line)
        source = (
            Grid(ledger.jobs)
            if trials is None or space is None
            else search.Search(folder, space, trials, settings.seed, plan, ledger)
        )
        if source.total < (trials or 0):
            console.note(f"these values have {source.total} combinations, fewer than sweep.trials={trials}")
        live = Live(folder, ledger.jobs, launcher, source.total)
        keeper = Keeper(folder, settings.sweep.keep, ledger.jobs)
        with stop_signals() as stop, live:
            flags = [locks.UNLOCK] if unlocks else []
            execution = Execution(
                source, ledger, launcher, live, keeper, settings.sweep, stop, settings.time_limit, flags
            )
            execution.run()
        problem = write_report(folder)
        is_done = all(job.is_complete for job in ledger.jobs) and source.next() is None
        again = [] if is_done else [resume_command(folder, ledger.arguments)]
        live.summary(keeper.num_removed, [*again, f"{programs.program('report')} {shlex.quote(str(folder))}"])
        if problem and any(job.is_complete for job in ledger.jobs):
            console.error(f"{folder}: its leaderboard could not be written: {problem}")
    if stop.signal:
        return 128 + stop.signal
    if execution.is_out_of_time:
        return 124  # as of the program `timeout`
    return int(any(job.state == "failed" for job in ledger.jobs))


@contextlib.contextmanager
def _undone_if_refused(keep: Callable[..., None], ledger: Ledger) -> Iterator[None]:
    """Keep the sweep's folder; restore it if the cluster rejects the first job."""
    there = {ledger.folder / ".lock", *(ledger.folder.iterdir() if ledger.folder.exists() else ())}
    before = {path: path.read_bytes() for path in there if path.name in (LEDGER, "study.db", "study.db-journal")}
    keep()
    try:
        yield
    except ConfigError:
        new = set(ledger.folder.iterdir()) - there
        # An accepted job has a folder, or is in the cluster's queue.
        has_job = any(ledger.folder / job.folder in new for job in ledger.jobs)
        if not has_job and not any((path / "jobs.json").exists() for path in new):
            keep(False)
            for path, content in before.items():
                atomic_write(path, content)
        raise


def _refuse_other_search(folder: Path, plan: Plan) -> None:
    """Reject overrides that would give a search's new jobs another config than those in its folder."""
    _, jobs = read(folder) or ([], [])
    for job in jobs[:1]:
        row = job.overrides[len(job.overrides) - len(plan.swept) :]
        for key, (before, now) in job.identity.differences(plan.job(row).identity).items():
            raise ConfigError(
                f"{key}: the search in {folder} has {before}, the command says {now}; use its value, or choose another "
                "hydra.sweep.dir"
            )


def _refuse_folder(folder: Path, *, is_search: bool) -> None:
    """Reject the folder of a run, or of the other kind of sweep, to keep their jobs apart."""
    if any((folder / name).exists() for name in ("report.json", ".hydra", "checkpoints")):
        raise ConfigError(f"hydra.sweep.dir: {folder} is a run's folder; choose another")
    was_search = (folder / "study.db").exists()
    if (existing := read(folder)) and existing[1] and was_search != is_search:
        kinds = ("a search", "a grid") if was_search else ("a grid", "a search")
        raise ConfigError(f"hydra.sweep.dir: {folder} holds {kinds[0]}, and this is {kinds[1]}; choose another")


def _without_effect(plan: Plan, jobs: Sequence[Job]) -> list[str]:
    """Return a sentence for each key that is the same in all jobs and has no effect in any; ConfigError if it varies."""
    swept = [override.key_or_group for override in plan.swept]
    words = [*plan.fixed, *(f"{key}=" for key in swept)]
    sentences = [rules.without_effect(job.config, words) for job in jobs] or [{}]
    useless = [key for key in sentences[0] if all(key in of_job for of_job in sentences)]
    if varying := [key for key in useless if key in swept]:
        lines = [f"{sentences[0][key]}, so that these jobs would be the same; give one value" for key in varying]
        raise ConfigError("\n".join(line.replace("=", ": ", 1) for line in lines))
    return [sentences[0][key] for key in useless]


def _check_data(jobs: Sequence[Job]) -> None:
    """Raise DataError if the data of a job cannot be loaded; load each source once."""
    places: dict[tuple[Any, ...], dict[str, Any]] = {}
    for job in jobs:
        data = job.config["data"]
        if not job.is_complete:
            places.setdefault(tuple(data.get(key) for key in ("name", "dir", "download", "cache_dir")), data)
    for data in places.values():
        datasets.load(data_section(data))
