"""A search: proposes jobs from earlier results, and prunes hopeless runs."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.core.override_parser.types import IntervalSweep, Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from cifar_research import config
from cifar_research.config.sweep import takes_whole_numbers
from cifar_research.display import console
from cifar_research.runs import metrics
from cifar_research.runs.ledger import Job
from cifar_research.runtime.errors import ConfigError, ReportError
from cifar_research.sweeps.keep import score
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.plan import Plan
from cifar_research.sweeps.study import NAME, STUDY, escaped

_RANDOM_TRIALS = 10  # random trials before the model-based ones
_TRIES = 100
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


class Search:
    """A search by tree-structured Parzen estimators (Bergstra et al. 2011), stored in study.db.

    space: the distribution of each key; ConfigError if the folder's study has another. trials: in all launches.
    """

    learns = True  # from each result, so propose only as many jobs as run at once

    def __init__(
        self, folder: Path, space: Mapping[str, BaseDistribution], trials: int, seed: int, plan: Plan, ledger: Ledger
    ) -> None:
        self._plan, self._ledger, self._space = plan, ledger, dict(space)
        self.total = min(trials, size(space) or trials)
        self._url = f"sqlite:///{escaped(folder)}"
        self._study = optuna.create_study(
            storage=_storage(self._url), study_name=NAME, direction="maximize", load_if_exists=True
        )
        check(folder, space)  # again: opening the study has undone a pending transaction
        self._study.set_user_attr("space", _described(self._space))
        earlier = self._study.get_trials()
        # Another seed after each restart: the same one would repeat the trials.
        own_seed = np.random.SeedSequence([seed, len(earlier)]).generate_state(1)[0]
        self._study.sampler = _Unseen(self._space, int(own_seed))
        self._numbers: dict[str, int] = {}
        self._is_exhausted = False
        for trial in earlier:
            if trial.state is TrialState.RUNNING and trial.params.keys() != self._space.keys():  # killed while drawn
                self._study.tell(trial.number, state=TrialState.FAIL)
        # Continue interrupted trials first, and try crashed ones once more.
        for number in self._study.user_attrs.get("crashed", []):
            params, distributions = earlier[number].params, earlier[number].distributions
            self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        self._study.set_user_attr("crashed", [])
        self._begun = deque(self._study.get_trials(states=[TrialState.RUNNING]))

    def next(self) -> Job | None:
        """Return the next job, None if all trials are done or the space is exhausted."""
        while self._begun or (self.num_trials < self.total and not self._is_exhausted):
            try:
                trial = self._begun.popleft() if self._begun else self._study.ask(self._space)
            except _ExhaustedError as error:
                self._study.tell(error.args[0], state=TrialState.FAIL)
                self._is_exhausted = True
                continue
            try:
                job = self._plan.job([f"{key}={_word(value)}" for key, value in trial.params.items()])
            except ConfigError as error:  # an invalid combination of values
                self._study.tell(trial.number, state=TrialState.FAIL)
                console.error(str(error))
                continue
            job = self._ledger.add(job)
            # An equal trial with other values is still running or has failed.
            if job.folder in self._numbers and not job.is_complete:
                self._study.tell(trial.number, state=TrialState.FAIL)
                continue
            self._numbers[job.folder] = trial.number
            return job
        return None

    @property
    def num_trials(self) -> int:
        """Return the number of trials, of which a repeated one counts once."""
        trials = self._study.get_trials(deepcopy=False)
        return len({_key(trial.params) for trial in trials if trial.params.keys() == self._space.keys()})

    def tell(self, job: Job) -> None:
        """Report the result of a job to the study; a stopped job stays open."""
        number = self._numbers[job.folder]
        if job.state == "failed":
            self._study.set_user_attr("crashed", [*self._study.user_attrs.get("crashed", []), number])
        if job.state in ("failed", "diverged"):
            self._study.tell(number, state=TrialState.FAIL)
        elif job.state == "pruned":
            self._study.tell(number, state=TrialState.PRUNED)
        elif job.state == "completed":
            value = score(self._ledger.folder / job.folder, job)  # None if a small data set has no validation images
            self._study.tell(number, value, state=None if value is not None else TrialState.FAIL)

    def trial_of(self, job: Job) -> tuple[str, int] | None:
        """Return the study's address and the job's trial number."""
        return self._url, self._numbers[job.folder]


def check(folder: Path, space: Mapping[str, BaseDistribution]) -> None:
    """Raise ConfigError if a folder's study has another space, ReportError if it is damaged."""
    path = folder / STUDY
    if not path.exists():
        return
    query = "SELECT value_json FROM study_user_attributes WHERE key = 'space'"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{escaped(folder)}?mode=ro", uri=True)) as study:
            described = study.execute(query).fetchone()
    except sqlite3.OperationalError:  # killed before the space was stored, or a journal is pending
        return
    except sqlite3.DatabaseError as error:
        raise ReportError(
            f"{path}: is damaged ({error}); restore it from a backup, or choose another hydra.sweep.dir"
        ) from error
    if described is not None and (known := json.loads(described[0])) != _described(space):
        raise ConfigError(
            f"{folder}: its search is over another space, {known}; use that one, or choose another hydra.sweep.dir"
        )


def _storage(url: str) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def space(plan: Plan) -> dict[str, Distribution]:
    """Return the distribution of each swept key: choices, a range or an interval.

    `tag(log, interval(a, b))` is logarithmic. Raises ConfigError if nothing varies or a value is invalid.
    """
    for key in ("seed", "data.fold"):
        if any(override.key_or_group == key for override in plan.swept):
            raise ConfigError(
                f"{key}: a search would look for the best one; give one, and repeat the best setting in a sweep"
            )
    distributions = {override.get_key_element(): _distribution(override) for override in plan.swept}
    if len(distributions) < len(plan.swept):
        raise ConfigError(
            f"{plan.swept[-1].key_or_group}: a search cannot vary a group's options and its keys at once by mappings; name the keys"
        )
    if not distributions:
        raise ConfigError(
            "sweep.trials: nothing varies here; give a key several values, key=a,b or key=interval(a,b), or choose "
            "sweep=perspectives"
        )
    chosen = [
        f"{key}={distribution.choices[0]}"
        for key, distribution in distributions.items()
        if isinstance(distribution, CategoricalDistribution)
    ]
    composed = config.compose([*plan.fixed, *chosen, *plan.parser.context])
    for key, distribution in distributions.items():  # Hydra converts the ends of interval(8,64) to floats
        if isinstance(distribution, FloatDistribution) and takes_whole_numbers(composed, key):
            if math.ceil(distribution.low) > math.floor(distribution.high):
                raise ConfigError(f"{key}: no integer from {distribution.low:g} to {distribution.high:g}; widen it")
            distributions[key] = IntDistribution(
                math.ceil(distribution.low), math.floor(distribution.high), log=distribution.log
            )
    for row in corners(distributions):
        data = plan.job(row).config["data"]
        if data["val_fraction"] == 0 and data["validation"] == "holdout" and not data["folds"]:
            raise ConfigError(
                "sweep.trials: a search needs validation images, and data.val_fraction=0 leaves none; set data.val_fraction=0.1"
            )
    return distributions


def size(space: Mapping[str, BaseDistribution]) -> int | None:
    """Return the number of combinations of a space of choices; None with an interval."""
    choices = [len(each.choices) for each in space.values() if isinstance(each, CategoricalDistribution)]
    return math.prod(choices) if len(choices) == len(space) else None


def corners(space: Mapping[str, Distribution]) -> list[list[str]]:
    """Return overrides of jobs that cover each choice and each end of an interval."""
    ends: dict[str, list[Any]] = {
        key: list(distribution.choices)
        if isinstance(distribution, CategoricalDistribution)
        else [distribution.low, distribution.high]
        for key, distribution in space.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    rows = [first | {key: value} for key, values in ends.items() for value in values]
    return [[f"{key}={_word(value)}" for key, value in row.items()] for row in rows]


def _described(space: Mapping[str, BaseDistribution]) -> str:
    return json.dumps({key: repr(value) for key, value in space.items()}, sort_keys=True)


def _distribution(override: Override) -> Distribution:
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    low, high, is_log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None and high is not None  # an interval has both
    try:
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(low, high, log=is_log)
    except ValueError as error:
        raise ConfigError(f"{override.key_or_group}: {error}") from error


def _word(value: Any) -> str:
    # Four digits keep the names of folders short.
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _ExhaustedError(Exception):
    """All of the space has been tried. Its argument is the number of the trial without parameters."""


class _Unseen(optuna.samplers.TPESampler):
    """A sampler without repetition: random trials first, then TPE over all parameters jointly."""

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(multivariate=True, constant_liar=True, n_startup_trials=_RANDOM_TRIALS, seed=seed)
        self._space, self._random = dict(space), optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Mapping[str, Any]) -> dict[str, Any]:
        seen = {_key(other.params) for other in study.get_trials(deepcopy=False) if other.number != trial.number}
        for attempt in range(_TRIES):
            params = super().sample_relative(study, trial, self._space) if attempt < _TRIES // 2 else {}
            if len(params) < len(self._space):
                draw = self._random.sample_independent
                params = {name: draw(study, trial, name, space) for name, space in self._space.items()}
            if _key(params) not in seen:
                return params
        for params in _all(self._space):
            if _key(params) not in seen:
                return params
        raise _ExhaustedError(trial.number)


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, _word(value)) for name, value in params.items()))


def _all(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """Yield every combination of a space of choices; none if it has an interval."""
    choices = [getattr(distribution, "choices", ()) for distribution in space.values()]
    for values in itertools.product(*choices):
        yield dict(zip(space, values, strict=True))


def pruner_of(trial: tuple[str, int], monitor: str, num_epochs: int) -> Callable[[Mapping[str, Any]], bool]:
    """Return a function that decides after each epoch whether a run is hopeless.

    The median stopping rule of Golovin et al. (2017), with the lower quartile: hopeless if the best value of the monitored
    metric is worse than that of three quarters of the completed trials at this epoch. It applies from half of the epochs on,
    since a schedule with a high or rising rate starts slowly, with five complete trials and five that reached this epoch.
    """
    url, number = trial
    storage = _storage(url)
    pruner = optuna.pruners.PercentilePruner(75, n_startup_trials=5, n_warmup_steps=num_epochs // 2, n_min_trials=5)
    study = optuna.load_study(study_name=NAME, storage=storage, pruner=pruner)
    study_id = storage.get_study_id_from_name(NAME)
    live = Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def is_hopeless(row: Mapping[str, Any]) -> bool:
        known = study.get_trials(deepcopy=False)[number].intermediate_values
        if row["epoch"] not in known:  # known if the run resumed from an earlier checkpoint
            value = metrics.worth(row, f"val_{monitor}")
            assert value is not None  # a search needs validation images
            live.report(value, row["epoch"])
        return live.should_prune()

    return is_hopeless
