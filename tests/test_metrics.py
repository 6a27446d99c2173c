"""Metrics beside accuracy and loss: as scikit-learn defines them, and as what chooses, steers and ranks."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from cifar_research import config
from cifar_research import report as command
from cifar_research.comparison import runs, tables
from cifar_research.comparison.ranking import Comparison
from cifar_research.config.schema import METRICS
from cifar_research.data import synthetic
from cifar_research.evaluation import scores
from cifar_research.runs import metrics, report
from cifar_research.runtime.errors import ConfigError
from cifar_research.training import loop
from cifar_research.training.run import run
from cifar_research.training.scoring import Scores
from cifar_research.training.state import Progress

TAIL = np.array([500, 200, 101, 100, 20, 19, 5])


def drawn(seed, num_classes=7, images=200, missing=()):
    """Return logits float32 [N, K] and labels int64 [N]; classes in `missing` have no images."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([number for number in range(num_classes) if number not in missing], images)
    logits = rng.normal(size=(images, num_classes)).astype(np.float32)
    logits[np.arange(images), labels] += 1
    return logits, labels


@pytest.mark.parametrize("missing", [(), (2,), (0, 6)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_are_scikit_learns(seed, missing):
    logits, labels = drawn(seed, missing=missing)
    predictions = logits.argmax(1)
    values = scores.summary(logits, labels, TAIL)
    assert values["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predictions))
    assert values["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    )
    top5 = sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(7))
    assert values["top5_accuracy"] == pytest.approx(top5)
    if not missing:
        probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
        expected = sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
        assert values["auc"] == pytest.approx(expected)
    else:
        assert values["auc"] is None


def test_shots_are_classes_by_their_training_images():
    logits, labels = drawn(0)
    predictions, values = logits.argmax(1), scores.summary(logits, labels, TAIL)
    for name, chosen in (("many_accuracy", [0, 1, 2]), ("medium_accuracy", [3, 4]), ("few_accuracy", [5, 6])):
        expected = np.mean([(predictions == labels)[labels == number].mean() for number in chosen])
        assert values[name] == pytest.approx(expected)
    even = scores.summary(logits, labels, np.full(7, 500))
    assert even["many_accuracy"] is even["few_accuracy"] is None


def test_a_metric_of_classes_without_validation_images_is_refused():
    train, val = np.array([300, 300, 5]), np.array([30, 30, 0])
    (problem,) = metrics.problems("few_accuracy", train, val)
    assert "few_accuracy needs validation images of classes with 0 to 19 training images" in problem
    assert not metrics.problems("many_accuracy", train, val) and not metrics.problems("few_accuracy", train, val + 1)
    assert not metrics.problems("few_accuracy", train, val * 0)  # without validation there is nothing to monitor


def test_five_classes_have_no_top_five():
    logits, labels = drawn(0, num_classes=5)
    assert scores.summary(logits, labels, np.full(5, 9))["top5_accuracy"] is None


SMALL = [
    "data=synthetic", "data.train_images=400", "data.test_images=100", "backbone.filters=[4]", "model.hidden=[4]",
    "training.epochs=3", "optimizer.learning_rate=0.02", "tensorboard.enabled=false",
]  # fmt: skip


@pytest.mark.parametrize("monitor", ["macro_f1", "balanced_accuracy", "top5_accuracy", "loss"])
def test_the_monitored_metric_chooses_the_epoch_and_is_scikit_learns(tmp_path, monitor):
    result = run(config.parse([*SMALL, f"training.monitor={monitor}"]), tmp_path)
    history = report.read_history(tmp_path / "history.csv")
    worths = [(metrics.worth(row, f"val_{monitor}"), -row["val_loss"]) for row in history]
    assert result["best_epoch"] == 1 + worths.index(max(worths))
    best = history[result["best_epoch"] - 1]
    assert result["val"] == {name: best[f"val_{name}"] for name in METRICS}
    assert result["test"].keys() == result["val"].keys() and result["test"]["few_accuracy"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.classes=[0,1,2]"], "top5_accuracy needs more than 5 classes, and the data has 3"),
        (["training.monitor=few_accuracy"], "few_accuracy needs classes with 0 to 19 training images"),
        (["training.monitor=many_accuracy"], "many_accuracy needs classes with over 100 training images"),
    ],
)
def test_a_metric_that_the_data_does_not_define_is_refused(tmp_path, overrides, message):
    overrides = [word.replace("[0,1,2]", f"[{','.join(synthetic.CLASSES[:3])}]") for word in overrides]
    with pytest.raises(ConfigError, match=f"training.monitor: {message}"):
        run(config.parse([*SMALL, "training.monitor=top5_accuracy", *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("accuracy", [(1.0, 0.9), (1.0, 0.5), (1.0, 0.7)], 2),  # ties go to the lowest loss
        ("accuracy", [(0.5, 0.9), (0.5, 0.9)], 1),  # of equal ones to the first epoch
        ("accuracy", [(0.5, 0.1), (0.6, 0.9)], 2),
        ("loss", [(0.5, 0.2), (0.6, 0.2), (0.4, 0.3)], 1),
    ],
)
def test_the_best_of_epochs_with_equal_values_is_that_with_the_lowest_loss(monitor, values, best):
    progress = Progress()
    for accuracy, loss in values:
        progress.epoch += 1
        loop._is_best(progress, Scores({"accuracy": accuracy, "loss": loss}, np.zeros(0)), monitor)
    assert progress.best["epoch"] == best


@pytest.mark.parametrize(("monitor", "first"), [("loss", "b"), ("macro_f1", "b"), ("accuracy", "a")])
def test_reports_rank_by_the_monitored_metric(tmp_path, monitor, first):
    for name, rate, values in (
        ("a", 0.1, {"loss": 0.9, "accuracy": 0.8, "macro_f1": 0.3}),
        ("b", 0.2, {"loss": 0.2, "accuracy": 0.4, "macro_f1": 0.6}),
    ):
        write(tmp_path / name, [f"training.monitor={monitor}", f"optimizer.learning_rate={rate}"], values)
    comparison = Comparison(runs.find([str(tmp_path)])[0])
    assert comparison.metric == monitor
    assert comparison.leaderboard[0].runs[0].folder.name == first
    header, row, _ = tables.leaderboard_table(comparison)
    cells = dict(zip(header, row, strict=True))
    assert ("val macro F1" in cells) is (monitor == "macro_f1")
    if monitor == "macro_f1":
        assert cells["val macro F1"] == "0.6000" and cells["val accuracy"] == "0.4000"
    assert header.count("val loss") == 1 and (header[header.index("val loss") + 1] == "val 95 %") is (monitor == "loss")
    assert ("Ranks are not tested" in command.summary(comparison)) is (monitor != "accuracy")
    write(tmp_path / "c", ["training.monitor=balanced_accuracy"], {"loss": 1, "accuracy": 0.9})
    assert Comparison(runs.find([str(tmp_path)])[0]).metric == "accuracy"


@pytest.mark.parametrize(("monitor", "order"), [("loss", ["0.2", "0.1"]), ("accuracy", ["0.1", "0.2"])])
def test_main_effects_begin_with_the_best_value_by_the_monitored_metric(tmp_path, monitor, order):
    for rate, loss, accuracy in ((0.1, 0.9, 0.8), (0.2, 0.2, 0.4)):
        for seed in range(2):
            overrides = [f"training.monitor={monitor}", f"optimizer.learning_rate={rate}", f"seed={seed}"]
            write(tmp_path / f"{rate}{seed}", overrides, {"loss": loss + seed / 100, "accuracy": accuracy})
    table = tables.effects_table(Comparison(runs.find([str(tmp_path)])[0]))
    assert [row[1] for row in table[1:]] == order
    assert tables.effects_table(Comparison(runs.find([str(tmp_path)])[0]), 1)[1:] == table[1:2]


def write(folder, overrides, values):
    folder.mkdir()
    settings = config.parse(overrides)
    values = dict.fromkeys(METRICS) | values
    content = {
        "status": "completed", "config": settings.content, "seed": 0, "epochs": 2, "train": values, "val": values,
        "test": values, "data": {"sizes": {"train": 4000, "val": 1000, "test": 1000}}, "seconds": {"total": 1.0},
    }  # fmt: skip
    report.write_report(folder / "report.json", json.loads(json.dumps(content)))
