"""The jobs of a sweep and the names of their folders."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from cifar_research.config import messages, permissions
from cifar_research.config.jobs import JobParser
from cifar_research.config.overrides import HYDRA_ERRORS, has_mapping, with_globs_expanded, with_texts
from cifar_research.config.sweep import SweepSettings
from cifar_research.display import console
from cifar_research.runs.ledger import Job
from cifar_research.runtime.errors import ConfigError

_LONGEST_NAME = 120


@dataclass(frozen=True)
class Plan:
    """The parsed overrides of a sweep: those that all jobs share, and those that vary."""

    fixed: list[str]
    swept: list[Override]
    parser: JobParser

    @classmethod
    def of(cls, settings: SweepSettings) -> Plan:
        """Parse hydra.sweeper.params and the overrides, which take precedence."""
        params, arguments = settings.params, settings.overrides
        _refuse_lost_overrides(arguments)
        for key in params:
            if re.match(r"[+~\s]*(allow_targets|hydra|sweep)\b", str(key)):
                raise ConfigError(f"hydra.sweeper.params: {key} is not a key of a job; give it on the command line")
        overrides = [f"{key}={'null' if value is None else value}" for key, value in params.items()]
        overrides += [word for word in arguments if not re.match(r"[+~]*(sweep|hydra)\b", word)]
        overrides = with_texts(with_globs_expanded(overrides, arguments))
        by_key: dict[Any, tuple[str, Any]] = {}
        for number, (word, override) in enumerate(zip(overrides, _parse(overrides), strict=True)):
            name = override.get_key_element().removeprefix("++")
            place: Any = name
            if has_mapping(override):  # it adds to the group's option and to other mappings
                by_key.pop((name, "swept"), None)
                place = name, "swept" if override.is_sweep_override() else number
            if override.is_discrete_sweep() and next(override.sweep_string_iterator(), None) is None:
                raise ConfigError(f"{word}: has no values, so that there are no jobs; give at least one")
            if place in by_key and by_key[place][0].startswith("++") and not word.startswith("++"):
                word = f"++{word}"  # the replaced override added the key
                (override,) = _parse([word])
            by_key[place] = word, override
        if any(override.is_sweep_override() for key, (_, override) in by_key.items() if key == "allow_targets"):
            raise ConfigError("allow_targets: takes one list for all jobs of a sweep; give allow_targets=[my_lab]")
        context = [word for word in arguments if word.startswith(("hydra.searchpath=", "sweep."))]
        if settings.sweep.trials is not None:  # a sweep's file may set it
            context.append(f"sweep.trials={settings.sweep.trials}")
        _refuse_other_folds(params, arguments)
        fixed = [word for word, override in by_key.values() if not override.is_sweep_override()]
        swept = [override for _, override in by_key.values() if override.is_sweep_override()]
        return cls(fixed, swept, JobParser(fixed, context))

    def grid(self) -> list[Job]:
        """Return a job for each combination, without duplicates; the last key varies fastest.

        Raises ConfigError, naming the job, if one is invalid.
        """
        for override in self.swept:
            if not override.is_discrete_sweep():
                raise ConfigError(
                    f"{override.input_line}: a grid needs lists of values, key=a,b,c; for an interval add "
                    "sweep.trials=<number>"
                )
        choices = [
            [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            for override in self.swept
        ]
        jobs: dict[str, Job] = {}
        folders: set[str] = set()
        for row in console.counted("Planning", list(itertools.product(*choices))):
            job = self.job(row)
            digest = job.identity.hash
            if job.folder in folders:
                job.folder = f"{job.folder}-{digest}"
            folders.add(job.folder)
            if jobs.setdefault(digest, job) is job:
                continue
            for override in self.swept:
                if job.identity.is_free(override.key_or_group):
                    raise ConfigError(
                        f"{override.input_line}: does not change the results, so these jobs would be the same; give only "
                        "one value"
                    )
        return list(jobs.values())

    def job(self, row: Sequence[str]) -> Job:
        """Return the job of one combination of values; ConfigError, naming it, if invalid."""
        name = _folder_name(row or self.fixed)
        try:
            content = self.parser.content(row)
        except ConfigError as error:
            raise ConfigError("\n".join(f"{line} (in the job {name})" for line in str(error).splitlines())) from error
        return Job(name, [*self.fixed, *row], content)


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, list(overrides))) from error


def _refuse_lost_overrides(arguments: Sequence[str]) -> None:
    """Reject overrides that neither the sweep nor its jobs would see."""
    for word, override in zip(arguments, _parse(arguments), strict=True):
        key = override.key_or_group
        if not re.match(r"(sweep|hydra)\b", key):
            continue
        if override.is_sweep_override():
            raise ConfigError(f"{word}: takes one value for all jobs; give only one")
        if key.startswith("hydra") and not permissions.is_of_sweep(key):
            raise ConfigError(f"{word}: has no effect on the jobs of a sweep; remove it")


def _refuse_other_folds(params: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Reject another number of folds than that of a sweep's file, which lists its folds."""
    typed = dict(word.lstrip("+").partition("=")[::2] for word in arguments)
    num = typed.get("data.folds")
    if "data.fold" in params and "data.fold" not in typed and num not in (None, str(params.get("data.folds"))):
        raise ConfigError(
            f"data.fold: the sweep's file lists {params['data.fold']}, and data.folds is {num}; add 'data.fold=range({num})'"
        )


def _folder_name(row: Sequence[str]) -> str:
    """Return `pooling=max,dropout=0.3` for varying overrides, as a valid file name."""
    pairs = [word.lstrip("+~").partition("=")[::2] for word in row]
    last = [key.rpartition(".")[2] for key, _ in pairs]
    parts = [f"{end if last.count(end) == 1 else key}={value}" for (key, value), end in zip(pairs, last, strict=True)]
    whole = ",".join(parts) or "run"
    name = re.sub(r"[^\w.=,+-]+", "_", re.sub(r"[\[\]'\"{} ]", "", whole)).strip("._")
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
    return name
