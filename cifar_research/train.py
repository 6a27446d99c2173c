"""cifar-train: train, test and report a classifier, or run a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from hydra.core.utils import env_override

from cifar_research.config import HYDRA_ERRORS, config_dir, messages
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
    arguments = resume.expand(arguments)
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
        raise ConfigError(f"{' '.join(sorted(flags - set(MULTIRUN)))}: cannot be used with a sweep; remove it or -m")
    if not flags - {"--resolve", "--package", "-p"}:
        raise ConfigError(f"{' '.join(sorted(flags))}: needs --cfg; add --cfg job")
    overrides = [word for word in arguments if word.startswith("~") or ("=" in word and not word.startswith("-"))]
    if flags & {"--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help"}:
        # Check the config first: Hydra sets up the config's logging before it prints anything.
        compose(overrides)
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        # With this variable Hydra raises its errors; otherwise it prints them and exits with code 1.
        with env_override({"HYDRA_FULL_ERROR": "1"}):
            hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")(lambda cfg: None)()
    except HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, overrides)) from error
    finally:
        sys.argv = before
    return 0


if __name__ == "__main__":
    main()
