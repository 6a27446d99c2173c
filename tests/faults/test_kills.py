"""SIGKILL at any moment, also inside a save: a run that is restarted until it completes is bit-identical."""

import functools
import math
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from forked import Process
from test_resume import assert_same, result

KILLS = int(os.environ.get("CIFAR_TEST_KILLS", "6"))
SEED = int(os.environ.get("CIFAR_TEST_SEED", "0"))
IN_A_SAVE = 5  # one kill in this number
# Dropout, batch normalisation, augmentation, averages, a schedule, and two phases, the first on kept features. One
# thread, since two chains of runs share the cores.
OVERRIDES = [
    "data=synthetic", "data.train_images=120", "data.test_images=40", "backbone.filters=[4]", "model=wide",
    "model.hidden=[8]", "model.dropout=0.3", "backbone.dropout=0.1", "backbone.batch_norm=true", "augmentation=[flip,shift]",
    "schedule=cosine", "training=combined", "training.phases.backbone.trainable={last:2}", "features.views=2",
    "training.ema_decay=0.9", "training.epochs=2", "training.batch_size=32", "loss=categorical_crossentropy",
    "tensorboard.enabled=false", "training.threads=1", "seed=3",
]  # fmt: skip
STAGES = ("half written", "not yet renamed", "renamed")


def die_in_save(number, stage):
    """Have this process die in the number-th write of a checkpoint, of the steps or of the best weights."""
    fsync, replace, writes = os.fsync, os.replace, [0]

    def is_checkpoint(descriptor):
        return ".ckpt." in os.readlink(f"/proc/self/fd/{descriptor}")

    def dying_fsync(descriptor):
        if is_checkpoint(descriptor):
            writes[0] += 1
            if writes[0] == number and stage == "half written":
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def dying_replace(source, target):
        is_mine = str(target).endswith(".ckpt") and writes[0] == number
        if is_mine and stage == "not yet renamed":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if is_mine:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = dying_fsync, dying_replace


class Chain:
    """Runs one after another, each killed and restarted until it completes; they share a number of kills."""

    def __init__(self, overrides, folder, whole, seconds, rng, kills):
        self.overrides, self.folder, self.whole = overrides, folder, whole
        self.seconds, self.rng, self.kills = seconds, rng, kills
        self.killed, self.in_a_save, self.completed, self.at = 0, 0, 0, []

    def run(self):
        while self.killed < self.kills:
            self.one_run()
        return self

    def one_run(self):
        name = f"run{self.completed}"
        arguments = [*self.overrides, f"hydra.run.dir={self.folder / name}"]
        # Its own cache, so that a kill may hit its creation.
        environment = os.environ | {"CIFAR_CACHE_DIR": str(self.folder / f"cache{self.completed}")}
        while self.killed < self.kills:
            if (
                self.rng.randrange(IN_A_SAVE) == 0
                or self.kills - self.killed <= math.ceil(self.kills / IN_A_SAVE) - self.in_a_save
            ):
                hook = functools.partial(die_in_save, self.rng.randint(1, 3), self.rng.choice(STAGES))
                command = Process(arguments, hook=hook, env=environment)
                code = command.wait()
                self.in_a_save += code == -signal.SIGKILL
            else:
                command = Process(arguments, env=environment)
                time.sleep(self.rng.uniform(0, self.seconds))
                code = command.kill() if command.is_running else command.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, command.output
            self.killed += 1
            steps = sorted((self.folder / name / "checkpoints").glob("step-*.ckpt"))
            self.at.append(int(steps[-1].stem[5:]) if steps else 0)
        command = Process(arguments, env=environment)
        assert command.wait() == 0, command.output
        assert_same(result(self.folder / name), self.whole)
        self.completed += 1


@pytest.mark.slow
def test_killed_at_random_moments_runs_end_identical_to_the_bit(tmp_path, capsys, weights_for):
    overrides = [*OVERRIDES, weights_for("backbone.filters=[4]", "backbone.batch_norm=true")]
    arguments = [*overrides, f"hydra.run.dir={tmp_path / 'whole'}"]
    began = time.monotonic()
    command = Process(arguments, env=os.environ | {"CIFAR_CACHE_DIR": str(tmp_path / "cache")})
    assert command.wait() == 0, command.output
    seconds, whole = time.monotonic() - began, result(tmp_path / "whole")
    chains = []
    for number in range(2):  # one a core, or nearly
        (tmp_path / str(number)).mkdir()
        rng = random.Random(1000 * SEED + number)
        chains.append(Chain(overrides, tmp_path / str(number), whole, seconds, rng, (KILLS + number) // 2))
    with ThreadPoolExecutor() as pool:
        chains = list(pool.map(Chain.run, chains))
    killed, in_a_save, completed = (sum(getattr(c, k) for c in chains) for k in ("killed", "in_a_save", "completed"))
    with capsys.disabled():
        at = sorted(step for chain in chains for step in chain.at)
        print(f"\n{killed} kills, {in_a_save} of them inside a save, in {completed} runs, after steps {at}")
    assert killed == KILLS and in_a_save >= KILLS // IN_A_SAVE
