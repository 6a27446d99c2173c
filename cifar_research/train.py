"""cifar-train: train, test and report a classifier, or run a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import hydra

from cifar_research.config import config_dir, messages
from cifar_research.config.composition import Composed, compose
from cifar_research.config.sweep import MULTIRUN, parse_command
from cifar_research.display import console
from cifar_research.runs import reproduction
from cifar_research.runtime import locks
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import resume
from cifar_research.sweeps import run as sweep
from cifar_research.training.command import exit_code, train


@console.command
def main() -> None:
    """Run the command line.

    Exit codes: 0 success, 1 diverged or failed, 2 user error, 128 + n stopped by signal n.
    With --verify: 0 identical, 3 within noise, 1 not reproduced.
    """
    sys.exit(command(sys.argv[1:]))


def command(arguments: Sequence[str]) -> int:
    """Run `cifar-train` with these arguments and return its exit code.

    Exit code 2 leaves every folder unchanged. The logging setup is restored at the end.
    """
    return exit_code(arguments, lambda: _done(arguments))


def _done(arguments: Sequence[str]) -> int:
    """Show help or a config, run a sweep or train; return the exit code."""
    unlocks = locks.UNLOCK in arguments
    arguments, original = reproduction.parse_arguments([word for word in arguments if word != locks.UNLOCK])
    if problem := messages.flags(arguments):
        raise ConfigError(problem)
    arguments = sweep.for_help(resume.expand(arguments))
    if any(word.startswith("-") and word not in MULTIRUN for word in arguments):
        return _show(arguments)
    parsed = parse_command(arguments)
    if isinstance(parsed, Composed):
        return train(parsed, original, unlocks=unlocks)
    if original is not None and original.is_verified:
        raise ConfigError("--verify: is for one run, and this is a sweep; remove --verify or -m")
    return sweep.run(parsed, unlocks=unlocks)


def _show(arguments: list[str]) -> int:
    """Let Hydra print help, a config or shell completion."""
    flags = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    if flags & set(MULTIRUN):
        shown = " ".join(sorted(flags - set(MULTIRUN)))
        if flags & {"--cfg", "-c", "--info", "-i"}:
            raise ConfigError(
                f"{shown}: shows one run's config, and -m makes many; remove -m, and give each key one value"
            )
        raise ConfigError(f"{shown}: cannot be used with a sweep; remove it or -m")
    if not flags - {"--resolve", "--package", "-p"}:
        raise ConfigError(f"{' '.join(sorted(flags))}: needs --cfg; add --cfg job")
    if flags & {"--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help"}:
        # Check the config first: Hydra sets up the config's logging before it prints anything.
        compose([word for word in arguments if not word.startswith("-") and "=" in word])
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # With this variable Hydra raises its errors; otherwise it prints them and exits with code 1.
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [sys.argv[0], *arguments], "1"
    try:
        hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")(lambda cfg: None)()
    finally:
        sys.argv = before[0]
        del os.environ["HYDRA_FULL_ERROR"]
        os.environ |= {} if before[1] is None else {"HYDRA_FULL_ERROR": before[1]}
    return 0


if __name__ == "__main__":
    main()
