"""A user's functions may branch on tensors; this package's are traced as they are written."""

import ast
from pathlib import Path

import forked
import pytest

from cifar_research.runs import report

PACKAGE = Path(__file__).parents[1] / "cifar_research"
# Each has an `if` over a tensor, which TensorFlow refuses to trace as it is written.
MY_LAB = """
import tensorflow as tf

def halves(*, after: float):
    def schedule(step, total_steps, steps_per_epoch):
        if step < after:
            return tf.ones_like(step)
        return step * 0 + 0.5
    return schedule

def absolute():
    def loss(logits, targets):
        total = tf.zeros_like(logits[:, 0])
        for number in tf.range(logits.shape[1]):
            total += tf.abs(logits[:, number] - targets[:, number])
        if tf.reduce_sum(total) < 0:
            total = total * float("nan")
        return total
    return loss

def darken():
    def transform(images, targets, seed):
        if tf.reduce_mean(images) > 0:
            images = images / 2
        return images, targets
    return transform

class Signs:
    def __call__(self, weight, slots, gradient, learning_rate, step):
        if step > 0:
            weight.assign_sub(learning_rate * tf.sign(gradient))

def signs(*, learning_rate: float):
    from cifar_research.optimization.optimizers import Optimizer
    return Optimizer(learning_rate=learning_rate, slots=(), update=Signs())
"""


def test_a_users_functions_branch_on_tensors(tmp_path):
    (tmp_path / "my_lab.py").write_text(MY_LAB)
    groups = {"schedule": "halves", "loss": "absolute", "augmentation": "darken", "optimizer": "signs"}
    values = {"schedule": "\nafter: 4", "optimizer": "\nlearning_rate: 0.001"}
    for group, name in groups.items():
        path = tmp_path / "my_conf" / group / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        target = f"_target_: my_lab.{name}{values.get(group, '')}"
        path.write_text(f"{name}:\n  {target}\n" if group == "augmentation" else f"{target}\n")
    overrides = [
        "hydra.searchpath=[file://my_conf]", "allow_targets=[my_lab]", *(f"{group}={name}" for group, name in groups.items()),
        "data=synthetic", "data.train_images=60", "data.test_images=20", "backbone.filters=[4]", "model.hidden=[4]",
        "training.batch_size=9", "training.epochs=1", "training.log_every_steps=1", "hydra.run.dir=run",
    ]  # fmt: skip
    done = forked.run(overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = report.read_history(tmp_path / "run" / "history.csv")
    assert row["learning_rate"] == pytest.approx(0.0005)  # of the last step


def test_nothing_of_ours_is_rewritten():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "tf.function" in map(ast.unparse, [node.func, *node.args[:1]]):
                overrides = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert overrides.get("autograph") == "False", f"{path.name}:{node.lineno}"
            bare = isinstance(node, ast.FunctionDef) and "tf.function" in map(ast.unparse, node.decorator_list)
            assert not bare, f"{path.name}:{node.lineno}"
