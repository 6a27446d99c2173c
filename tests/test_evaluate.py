"""Evaluation and comparison of runs, checked against independent figures."""

import copy
import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
from conftest import refusals
from PIL import Image
from scipy import stats
from scipy.special import softmax

from cifar_research import config
from cifar_research.data import datasets, synthetic
from cifar_research.display import console, document
from cifar_research.evaluation import against, calibration, corruptions, images, pictures, scores
from cifar_research.evaluation.run import compare, evaluate, find, folder_for
from cifar_research.inference import trained
from cifar_research.runs import metrics
from cifar_research.runs.report import read_report, write_report
from cifar_research.runtime.errors import ConfigError, DataError, RunError
from cifar_research.training.run import run as train_run

pytestmark = pytest.mark.draws
SMALL = [
    "data=synthetic", "data.train_images=600", "data.test_images=300", "training.epochs=6", "training.batch_size=32",
    "backbone.filters=[8,8]", "model.hidden=[16]", "tensorboard.enabled=false", "loss=categorical_crossentropy",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("CIFAR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """A sweep's folder made by hand: three runs of the same classes, two of which differ only in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, arguments in {"a0": [], "a1": ["seed=1"], "b0": ["training.epochs=2"]}.items():
        train_run(config.parse([*SMALL, *arguments]), folder / name)
    return folder


@pytest.fixture(scope="module")
def evaluated(runs):
    """The run a0, evaluated with all options, and the output of the command."""
    [(_, text)] = evaluate([[runs / "a0"]], views="flip_shift", corrupted=40)
    return runs / "a0", json.loads((runs / "a0" / "evaluation.json").read_text()), text


@pytest.fixture(scope="module")
def drawn():
    """Logits float32 [400, 4] correlated with the labels int64 [400]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    return (rng.normal(size=(400, 4)) + 1.5 * np.eye(4)[labels]).astype(np.float32), labels


def test_scores_against_scikit_learn(drawn):
    logits, labels = drawn
    result, predictions = scores.summary(logits, labels, np.full(4, 100)), logits.argmax(1)
    assert result["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))
    interval = stats.binomtest(result["right"], 400).proportion_ci(method="wilson")
    assert result["interval"] == pytest.approx([interval.low, interval.high], abs=1e-6)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert result["cross_entropy"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities))
    rows = scores.by_class(metrics.confusion_matrix(labels, predictions, 4), "abcd")
    expected = sklearn.metrics.classification_report(labels, predictions, target_names=list("abcd"), output_dict=True)
    for row in rows:
        assert [row["precision"], row["recall"], row["f1"], row["images"]] == pytest.approx(
            [expected[row["class"]][key] for key in ("precision", "recall", "f1-score", "support")]
        )


def test_a_class_that_nothing_is_taken_for_has_no_precision():
    rows = scores.by_class(np.array([[1, 0, 0], [2, 0, 0], [0, 0, 0]]), "abc")
    assert [row["precision"] for row in rows] == [pytest.approx(1 / 3), None, None]
    assert [row["recall"] for row in rows] == [1, 0, None] and [row["f1"] for row in rows] == [0.5, 0, None]
    assert [row["images"] for row in rows] == [1, 2, 0]


def test_confused_pairs_by_hand():
    matrix = np.array([[5, 3, 0], [1, 9, 0], [4, 0, 2]])
    result = scores.confused_pairs(matrix, "abc")
    assert [(row["truth"], row["prediction"], row["images"]) for row in result] == [("c", "a", 4), ("a", "b", 3),
                                                                                  ("b", "a", 1)]  # fmt: skip
    assert result[0]["share"] == pytest.approx(4 / 6) and len(scores.confused_pairs(matrix, "abc", most=1)) == 1


def test_the_worst_mistakes_are_the_surest(drawn):
    logits, labels = drawn
    result = scores.worst(logits, labels, most=5)
    sure = [row["probability"] for row in result]
    wrong = logits.argmax(1) != labels
    assert sure == sorted(sure, reverse=True) and sure[0] == pytest.approx(softmax(logits, axis=1).max(1)[wrong].max())
    assert all(row["label"] == labels[row["index"]] != row["prediction"] for row in result)
    assert scores.worst(np.eye(3), np.arange(3)) == []


def test_expected_calibration_error_by_hand():
    # Two bins: of 0.5 to 1, three images of mean confidence 0.8, two right; of 0 to 0.5, one of 0.4, right.
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.4, 0.3, 0.3]])
    labels = np.array([0, 1, 1, 0])
    result = calibration.reliability(probabilities, labels, 2)
    assert result["counts"].tolist() == [1, 3]
    assert result["accuracy"] == pytest.approx([1, 2 / 3]) and result["confidence"] == pytest.approx([0.4, 0.8])
    assert calibration.expected_error(probabilities, labels, 2) == pytest.approx((0.6 + 3 * (0.8 - 2 / 3)) / 4)
    # A confidence on a bin's edge belongs below; empty bins count nothing.
    edge = calibration.reliability(np.array([[0.5, 0.5]]), np.array([0]), 2)
    assert edge["counts"].tolist() == [1, 0] and np.isnan(edge["accuracy"][1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_recovers_the_one_that_labels_were_drawn_with(temperature):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (40_000, 5)).astype(np.float32)
    powers = softmax(logits / temperature, axis=1)
    labels = (powers.cumsum(1) < rng.random((len(logits), 1))).sum(1).clip(0, 4)
    result = calibration.fit_temperature(logits, labels)
    assert result == pytest.approx(temperature, rel=0.03)
    least = scores.cross_entropy(logits / result, labels)
    assert all(least < scores.cross_entropy(logits / other, labels) for other in (result * 0.98, result * 1.02))
    before, after = (calibration.measures(logits, labels, t) for t in (1.0, result))
    assert after["ece"] < 0.01 and (temperature == 1 or before["ece"] > 0.05)
    assert after["brier"] <= before["brier"] and after["confidence"] == pytest.approx((logits.argmax(1) == labels).mean(),
                                                                                    abs=0.01)  # fmt: skip


def test_temperature_stays_within_its_bounds():
    labels = np.arange(3)
    assert calibration.fit_temperature(np.eye(3), labels) == calibration.LOWEST  # never wrong
    assert calibration.fit_temperature(-np.eye(3), labels) == calibration.HIGHEST  # always


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (5, 5), (3, 12), (120, 88), (30, 1)])
def test_mcnemar_against_the_binomial_test(counts):
    expected = pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue) if sum(counts) else None
    assert against.mcnemar(*counts) == expected


def test_holm_by_hand():
    assert against.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert against.holm([0.9, 0.8]) == [1, 1]
    assert against.holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]


def test_a_vote_goes_to_most_and_then_to_the_surest():
    def sure(number, of=3):
        return np.log(np.eye(3)[number] * (of - 1) + 1)

    three = np.stack([[sure(0), sure(2)], [sure(1, 90), sure(2)], [sure(0), sure(1)]])
    assert against.vote(three)[0].tolist() == [0, 2]
    assert against.vote(three[:2])[0].tolist() == [1, 2]  # one vote each
    winners, probability = against.vote(three[:1])
    assert winners.tolist() == [0, 2] and probability == pytest.approx([3 / 5, 3 / 5])


def repeats(*seeds):
    return [[(seed, None) for seed in own] for own in seeds]


def test_comparison_by_hand(drawn):
    logits, labels = drawn
    rng = np.random.default_rng(5)
    first, second = (logits + rng.normal(0, 1, (3, *logits.shape)) for _ in range(2))
    second -= np.eye(4)[labels] / 2
    result = against.compare(first, second, labels, "abcd", repeats([0, 1, 2], [0, 1, 2]))
    right = [(against.vote(one)[0] == labels) for one in (first, second)]
    table = result["table"]
    assert sum(table.values()) == 400 and table["only_first"] == (right[0] & ~right[1]).sum()
    assert result["p"] == pytest.approx(stats.binomtest(table["only_first"],
                                                       table["only_first"] + table["only_second"]).pvalue)  # fmt: skip
    accuracies = [(one.argmax(2) == labels).mean(1) for one in (first, second)]
    assert result["first"]["accuracies"] == pytest.approx(accuracies[0])
    assert result["p_of_seeds"] == pytest.approx(stats.ttest_rel(*accuracies).pvalue)
    # Two runs of one seed in a group are not paired with anything.
    for seeds in (([0, 0, 0], [0, 1, 2]), ([0, 0, 0], [0, 0, 0]), ([0, 0, 1], [0, 1, 0])):
        unpaired = against.compare(first, second, labels, "abcd", repeats(*seeds))
        assert unpaired["p_of_seeds"] == pytest.approx(stats.ttest_ind(*accuracies, equal_var=False).pvalue)
        assert result["is_paired"] and not unpaired["is_paired"]
    assert sum(row["only_first"] for row in result["by_class"]) == table["only_first"]
    rows = against.differences(first, second, labels)
    assert len(rows) == table["only_first"] + table["only_second"]
    assert {row["index"] for row in rows} == set(np.flatnonzero(right[0] != right[1]))
    alone = against.compare(first[:1], first[:1], labels, "abcd", repeats([0], [0]))
    assert alone["p"] is None and alone["p_of_seeds"] is None
    # Folds of one seed are paired, and the variance of their mean is larger by the overlap of their training sets.
    folds = [[(0, fold) for fold in range(3)]] * 2
    of_folds = against.compare(first, second, labels, "abcd", folds, [0.5, 0.5])
    differences = accuracies[0] - accuracies[1]
    error = differences.std(ddof=1) * np.sqrt(1 / 3 + 0.5)
    assert of_folds["p_of_seeds"] == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, 2))
    assert of_folds["is_paired"] and of_folds["is_over_folds"] and not result["is_over_folds"]
    low, high = of_folds["first"]["interval"]
    half = stats.t.ppf(0.975, 2) * accuracies[0].std(ddof=1) * np.sqrt(1 / 3 + 0.5)
    assert (high - low) / 2 == pytest.approx(half)


def test_grad_cam_of_a_linear_case():
    import keras

    # A backbone that passes two channels on, and a head whose logits weight their means: the gradient is w / (h w).
    inputs = keras.Input((2, 2, 2))
    backbone = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    features = keras.Input((2, 2, 2))
    dense = keras.layers.Dense(2, use_bias=False)
    head = keras.Model(features, dense(keras.layers.GlobalAveragePooling2D()(features)))
    photos = keras.Input((2, 2, 2))
    model = keras.Model(photos, head(backbone(photos)))
    weights = np.array([[4.0, -8.0], [-4.0, 4.0]])  # [channels, classes]
    dense.set_weights([weights])
    image = np.array([[[[1, 0], [0, 1]], [[2, 1], [3, 3]]]], np.float32)
    result = pictures.grad_cam(model, np.repeat(image, 2, 0), np.array([0, 1]))
    assert result[0] == pytest.approx(np.maximum(image[0] @ weights[:, 0] / 4, 0)) and result[0].max() == 1
    assert result[1] == pytest.approx(np.maximum(image[0] @ weights[:, 1] / 4, 0))
    large = pictures.enlarged(result * 7, (8, 8))
    assert large.shape == (2, 8, 8) and large.max((1, 2)) == pytest.approx([1, 1]) and large.min() >= 0
    assert not pictures.enlarged(np.zeros((1, 2, 2), np.float32), (4, 4)).any()
    flat = keras.Model(inputs, keras.layers.Flatten()(inputs))
    ends = keras.Input((8,))
    model = keras.Model(photos, keras.Model(ends, keras.layers.Dense(2)(ends))(flat(photos)))
    assert pictures.grad_cam(model, image, np.array([0])) is None


def test_evaluation_equals_what_is_computed_apart(evaluated):
    run, result, text = evaluated
    classifier, data = trained.load(run), datasets.load(config.parse(SMALL).data)
    logits, labels = classifier.logits(data.test.images), data.test.labels
    assert result["test"]["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert result["test"]["accuracy"] > 0.3  # it has learned
    assert result["test"]["accuracy"] == result["reported_accuracy"] == classifier.report["test"]["accuracy"]
    assert result["test"]["loss"] == pytest.approx(classifier.report["test"]["loss"], rel=1e-5)
    assert (result["confusion"] == metrics.confusion_matrix(labels, logits.argmax(1), 10)).all()
    assert result["calibration"]["before"]["ece"] == pytest.approx(
        calibration.expected_error(softmax(logits, axis=1), labels), abs=1e-6
    )
    rows = data.val.indices
    fitted = calibration.fit_temperature(classifier.logits(data.val.images[rows]), data.val.labels[rows])
    assert result["temperature"] == pytest.approx(fitted) and result["temperature_images"] == len(rows) == 60
    assert classifier.temperature == result["temperature"]  # which the next one to load it takes
    assert f"{result['test']['accuracy']:.4f}" in text and "corruptions " in text


def test_views_are_averaged(evaluated):
    run, result, _ = evaluated
    assert (
        set(result["views"]) == {"none", "flip_shift"} and result["views"]["none"]["right"] == result["test"]["right"]
    )
    from cifar_research.augmentation.tta import averaged

    classifier = trained.load(run)
    plain = classifier.network
    classifier.network = averaged(plain, "flip_shift")
    data = datasets.load(config.parse(SMALL).data)
    right = (classifier.logits(data.test.images).argmax(1) == data.test.labels).sum()
    assert result["views"]["flip_shift"]["right"] == right


def test_a_run_that_tests_with_views_is_evaluated_with_them(runs, tmp_path):
    train_run(config.parse([*SMALL, "training.epochs=3", "evaluation.views=flip"]), tmp_path / "run")
    evaluate([[tmp_path / "run"]], corrupted=0, views="flip")
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["test"]["accuracy"] == result["reported_accuracy"]
    assert result["test"]["cross_entropy"] == pytest.approx(result["views"]["flip"]["cross_entropy"])
    assert result["test"]["cross_entropy"] != pytest.approx(result["views"]["none"]["cross_entropy"])


def test_corruptions_are_of_the_same_images(evaluated):
    run, result, _ = evaluated
    result = result["corruptions"]
    assert list(result["accuracies"]) == list(corruptions.NAMES) and result["images"] == 40
    rows = np.sort(np.random.default_rng(0).permutation(300)[:40])
    data = datasets.load(config.parse(SMALL).data)
    corrupted = corruptions.corrupt(data.test.images[rows], "fog", 4, [0, 0])
    right = trained.load(run).logits(corrupted).argmax(1) == data.test.labels[rows]
    assert result["accuracies"]["fog"][3] == pytest.approx(right.mean())
    assert result["mean"] == pytest.approx(np.mean(list(result["accuracies"].values())))


def test_files_of_an_evaluation(evaluated):
    run, result, _ = evaluated
    folder = run / "evaluation"
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"confusion", "reliability", "misclassified", "corruptions", "grad_cam"}
    for path in (folder / "figures").iterdir():
        assert np.asarray(Image.open(path).convert("L")).std() > 5, path  # it shows something
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert not re.search(r"https?://|@import|src=\"(?!data:)|href=", page) and page.count("data:image/png") == 5
    for link in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (folder / link).is_file()
    for heading in ("Accuracy", "Classes", "Confusion", "Calibration", "Worst mistakes", "Robustness", "Evidence"):
        assert f"<h2>{heading}</h2>" in page and f"## {heading}" in markdown
    assert f"{result['test']['accuracy']:.4f}" in page and f"{result['by_class'][3]['f1']:.4f}" in markdown


def test_a_page_escapes_what_names_hold(tmp_path):
    document.write(tmp_path, "x", "a <b>", [document.Section("<i>", ["1 < 2", [["<u>", "|"], ["c", "d"]]])])
    page = (tmp_path / "x.html").read_text()
    assert not re.search("<[ibu]>", page) and "&lt;u&gt;" in page
    assert r"| <u> | \| |" in (tmp_path / "x.md").read_text()


def test_other_images_leave_the_runs_own_evaluation(evaluated):
    run, result, _ = evaluated
    before = (run / "evaluation.json").read_bytes()
    evaluate([[run]], ["data.seed=5", "data.test_images=50"], corrupted=0)
    other = json.loads((run / "evaluation" / "synthetic" / "evaluation.json").read_text())
    assert (run / "evaluation.json").read_bytes() == before
    assert other["test"]["images"] == 50 and not other["data"]["is_own"] and "corruptions" not in other
    assert other["temperature"] == result["temperature"] and other["temperature_images"] is None
    assert "other images or other splits" in (run / "evaluation" / "synthetic" / "report.md").read_text()
    kept = (run / "evaluation" / "synthetic" / "evaluation.json").read_bytes()
    [(_, text)] = evaluate([[run]], ["data.seed=6", "data.test_images=40"], corrupted=0)
    (more,) = (run / "evaluation").glob("synthetic_*")
    assert str(more) in text and json.loads((more / "evaluation.json").read_text())["test"]["images"] == 40
    assert (run / "evaluation" / "synthetic" / "evaluation.json").read_bytes() == kept


def test_images_that_may_have_been_trained_on_are_reported(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for path in range(40):
        folder = tmp_path / "mine" / "ab"[path % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{path}.png")
    arguments = ["data=images", f"data.dir={tmp_path / 'mine'}", "backbone.filters=[4]", "model.hidden=[4]"]
    settings = config.parse([*arguments, "training.epochs=1", "training.batch_size=8", "tensorboard.enabled=false"])
    train_run(settings, tmp_path / "run", console.Display(quiet=True))
    (tmp_path / "mine" / "a" / "b.svg").touch()
    notes = [evaluate([[tmp_path / "run"]], more, corrupted=0)[0][1] for more in ([], ["data.split_seed=5"])]
    assert "40 images used; left out: 1 .svg (no reader)" in capsys.readouterr().err
    evaluated = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluated["data"]["left_out"] == {".svg (no reader)": 1}
    assert ["perhaps also on images that are tested here" in text for text in notes] == [False, True]


def test_a_folder_of_images_of_the_same_classes(evaluated, tmp_path):
    run, result, _ = evaluated
    pictures, labels = synthetic.draw(60, 9, split=1)
    for path, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        folder = tmp_path / "mine" / synthetic.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{path}.png")
    arguments = ["data=images", f"data.dir={tmp_path / 'mine'}"]
    is_sorted = list(synthetic.CLASSES) == sorted(synthetic.CLASSES)
    if is_sorted:
        data, other = images.load(trained.read(run), arguments)
        assert data.classes == synthetic.CLASSES and other == "images_mine"
    shutil.rmtree(tmp_path / "mine" / synthetic.CLASSES[0])
    with pytest.raises(DataError, match=r"has 9 classes \(.*\), and the run was trained on 10"):
        images.load(trained.read(run), arguments)


def test_a_users_modules_are_allowed_on_the_command_line(evaluated):
    assert images.is_override("allow_targets=[my_lab]")
    images.load(trained.read(evaluated[0]), ["allow_targets=[my_lab]", "data.split_seed=3"])


def test_the_runs_own_data_section_is_kept(evaluated):
    result = trained.read(evaluated[0])
    data, other = images.load(result, [])
    assert len(data.test) == 300 and other is None
    assert images.load(result, ["data.split_seed=3"])[1] == "synthetic"  # the run was trained on these images
    # Invalid for training only, since evaluation has other batches.
    small = copy.deepcopy(result)
    small["config"]["data"] |= {"train_size": 100, "drop_remainder": True}
    assert images.load(small, [])[1] is None
    with pytest.raises(ConfigError, match="data.sed: there is no such key; did you mean data.seed=3"):
        images.load(result, ["data.sed=3"])
    with pytest.raises(ConfigError, match="data.name: "):
        images.load(result, ["data.name=cifar10"])


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_cifar10_1(folder, pictures, labels):
    np.save(folder / "cifar10.1_v6_data.npy", pictures)
    np.save(folder / "cifar10.1_v6_labels.npy", labels)


def test_cifar10_1_is_read_and_refused(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="No such file.*cifar10.1_v6_data.npy"):
        images.cifar10_1(str(tmp_path), CIFAR)
    write_cifar10_1(tmp_path, pictures, np.arange(20, dtype=np.int32) % 10)
    result, labels = images.cifar10_1(str(tmp_path), CIFAR)
    assert (result == pictures).all() and labels.dtype == np.int64 and labels[13] == 3
    for classes in (synthetic.CLASSES, sorted({*CIFAR, "car"} - {"automobile"})):
        with pytest.raises(DataError, match="the ten classes of CIFAR-10"):
            images.cifar10_1(str(tmp_path), classes)
    with pytest.raises(DataError, match="images of 32 x 32, and the run has .* 64 x 64"):
        images.cifar10_1(str(tmp_path), CIFAR, 64)
    for bad in (np.arange(19) % 10, np.full(20, 10), np.arange(20) / 10):
        write_cifar10_1(tmp_path, pictures, bad)
        with pytest.raises(DataError, match=re.escape(str(tmp_path))):
            images.cifar10_1(str(tmp_path), CIFAR)
    write_cifar10_1(tmp_path, np.array([print], dtype=object), np.zeros(1, int))  # a pickle
    with pytest.raises(DataError, match="does not hold the published files"):
        images.cifar10_1(str(tmp_path), CIFAR)
    content = (tmp_path / "cifar10.1_v6_labels.npy").read_bytes()
    (tmp_path / "cifar10.1_v6_data.npy").write_bytes(content[:30])
    with pytest.raises(DataError, match="does not hold the published files"):
        images.cifar10_1(str(tmp_path), CIFAR)


def test_an_evaluation_on_cifar10_1(runs, tmp_path):
    # A run whose ten classes have CIFAR-10's names.
    run = tmp_path / "named"
    shutil.copytree(runs / "b0", run)
    report = read_report(run / "report.json")
    write_report(run / "report.json", report | {"data": report["data"] | {"classes": CIFAR}})
    pictures, labels = synthetic.draw(40, 3, split=1)
    write_cifar10_1(tmp_path, pictures, labels)
    patch = pytest.MonkeyPatch()
    patch.setattr(synthetic, "CLASSES", CIFAR)
    patch.setenv("CIFAR_CACHE_DIR", str(tmp_path / "cache"))  # it knows the names
    with patch.context():
        [(_, text)] = evaluate([[run]], cifar10_1=str(tmp_path), corrupted=0)
    patch.undo()
    result = json.loads((run / "evaluation.json").read_text())["cifar10_1"]
    assert result["images"] == 40 and "CIFAR-10.1 v6" in text
    assert result["right"] == (trained.load(run).logits(pictures).argmax(1) == labels).sum()


def call(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "cifar_research.evaluate", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


def test_two_runs_are_compared_from_the_command_line(runs):
    shown = call(runs / "a0", "--against", runs / "b0").stdout
    folder = runs / "a0" / "evaluation"
    result = json.loads((folder / "against_b0.json").read_text())
    data = datasets.load(config.parse(SMALL).data)
    right = [trained.load(runs / name).logits(data.test.images).argmax(1) == data.test.labels for name in ("a0", "b0")]
    table = result["table"]
    assert table["only_first"] == (right[0] & ~right[1]).sum() and table["both_right"] == (right[0] & right[1]).sum()
    assert result["p"] == pytest.approx(against.mcnemar(table["only_first"], table["only_second"]))
    assert "McNemar's exact test" in shown and f"p = {result['p']:.3g}" in shown
    header, *rows = csv.reader((folder / "against_b0.csv").read_text().splitlines())
    assert len(rows) == table["only_first"] + table["only_second"] and header[0] == "image"
    assert "data:image/png" in (folder / "against_b0.html").read_text()
    assert "## Where they differ" in (folder / "against_b0.md").read_text()


def test_a_comparison_on_other_images_leaves_the_one_on_the_runs_own(runs):
    path = runs / "a0" / "evaluation" / "against_b0.json"
    compare([runs / "a0"], [runs / "b0"])
    before = path.read_bytes()
    text = compare([runs / "a0"], [runs / "b0"], ["data.seed=5"])
    (other,) = path.parent.glob(f"synthetic*/{path.name}")
    assert "On the test images of synthetic, other ones than the first run's." in text and path.read_bytes() == before
    assert not json.loads(other.read_text())["data"]["is_own"] and json.loads(before)["data"]["is_own"]


def test_groups_of_runs_are_compared(runs):
    text = compare([runs / "a0", runs / "a1"], [runs / "b0"])
    (path,) = (runs / "a0" / "evaluation").glob("against_b0_????????.json")  # beside that of one run against one
    result = json.loads(path.read_text())
    assert len(result["first"]["accuracies"]) == 2 and result["p_of_seeds"] is None and "votes of the groups" in text
    assert find([str(runs)]) == [runs / "a0", runs / "a1", runs / "b0"]


def test_results_on_other_images_have_a_folder_for_each(tmp_path):
    assert folder_for(tmp_path, None, "a" * 16) == tmp_path
    other = folder_for(tmp_path, "images_pets", "a" * 16)
    assert other == tmp_path / "images_pets"
    other.mkdir()
    (other / "against_b.json").write_text(json.dumps({"data": {"fingerprint": "a" * 16}}))
    assert folder_for(tmp_path, "images_pets", "a" * 16) == other
    assert folder_for(tmp_path, "images_pets", "b" * 16) == tmp_path / "images_pets_bbbbbbbb"


def test_runs_of_a_sweep_without_weights_are_left_out(runs, tmp_path, capsys):
    folder = tmp_path / "sweep"
    for name in ("a0", "a1", "b0"):
        shutil.copytree(runs / name, folder / name)
    (folder / "a1" / "model.weights.h5").unlink()
    assert len(find([str(folder)])) == 3  # for a comparison, which would be biased
    assert [run.name for run in find([str(folder)], leaves_out=True)] == ["a0", "b0"]
    assert "1 of 3 runs have no weights and are left out" in " ".join(capsys.readouterr().err.split())
    assert find([str(folder / "a1")], leaves_out=True) == [folder / "a1"]  # which is refused later


def test_mistakes_on_the_command_line(runs, tmp_path):
    begun = tmp_path / "begun"
    (begun / ".hydra").mkdir(parents=True)
    stopped = tmp_path / "stopped"
    shutil.copytree(runs / "b0", stopped)
    report = read_report(stopped / "report.json") | {"status": "stopped"}
    write_report(stopped / "report.json", report)
    run = runs / "b0"
    mistakes = (
        ([tmp_path / "nowhere"], "there is no such folder"),
        ([begun], "there is no report.json"),
        ([stopped], "no run in it was completed"),
        ([run, "seed=1"], "seed=1: there is no such folder"),
        (["data=cifar10"], "no folder was given"),
        ([run, "data.seed=1,2"], "data.seed=1,2: has several values; give one"),
        ([run, "data=cifar11"], "data: there is no option 'cifar11'; did you mean"),
        ([run, "data=images", f"data.dir={tmp_path / 'none'}"], "none does not exist"),
        ([run, "--corruptions", "few"], "'few' is not none, all or a number"),
        ([run, "--views", "mirror"], "invalid choice: 'mirror'"),
        ([run, "--cifar10-1", tmp_path], "the ten classes of CIFAR-10"),
        ([run, "--against", run, "--views", "flip"], "remove the other options"),
        ([run, "--against", stopped], "no run in it was completed"),
    )
    lines = [[str(word) for word in arguments] for arguments, _ in mistakes]
    for done, (arguments, message) in zip(refusals("evaluate", lines, tmp_path), mistakes, strict=True):
        assert done["code"] == 2 and message in done["stderr"] and not done["has_tensorflow"], (arguments, done)


def test_a_comparison_tells_what_makes_a_score_too_high(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "b0", other)
    made = read_report(other / "report.json")
    write_report(other / "report.json", made | {"data": made["data"] | {"note": "validated on the test set"}})
    assert "other: validated on the test set" in compare([runs / "a0"], [other])
    data, _ = images.load(made, [])
    made["config"]["data"]["name"], made["data"]["fingerprint"] = "images", "another"
    of_images = dataclasses.replace(data, name="images")
    assert "run: was trained on another split" in images.description({"run": made}, of_images, is_own=False)["note"]
    same = made | {"data": made["data"] | {"fingerprint": data.fingerprint}}
    assert images.description({"run": same}, of_images, is_own=True)["note"] is None


def test_a_temperature_is_not_fitted_on_what_is_tested(runs, tmp_path):
    train_run(config.parse([*SMALL, "training.epochs=1", "data.validation=test"]), tmp_path / "run")
    evaluate([[tmp_path / "run"]], corrupted=0)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["temperature_images"] is None


def test_runs_of_other_classes_are_not_compared(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "b0", other)
    report = read_report(other / "report.json")
    report["data"]["classes"] = [*CIFAR[1:], "lion"]
    write_report(other / "report.json", report)
    with pytest.raises(RunError, match="other: has classes=.*lion, .*b0 has .*; give runs of the same classes"):
        compare([runs / "b0"], [other])
    with pytest.raises(DataError, match="give data of those classes"):
        images.load(trained.read(other), [])


def test_without_validation_there_is_no_temperature_to_fit(runs, tmp_path):
    settings = config.parse([*SMALL, "data.val_fraction=0", "training.epochs=1"])
    assert settings.data.val_fraction == 0
    train_run(settings, tmp_path / "run")
    evaluate([[tmp_path / "run"]], corrupted=0)
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["temperature"] == 1 and result["temperature_images"] is None
    assert result["uncalibrated"] == "the run has no validation images to fit a temperature on"
    assert (
        "not calibrated: the run has no validation images"
        in (tmp_path / "run" / "evaluation" / "report.md").read_text()
    )


@pytest.mark.browser
def test_the_page_opens_in_a_browser(evaluated, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium fonts-dejavu-core")
    run, result, _ = evaluated
    page = run / "evaluation" / "report.html"
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1200,3000"]
    arguments = [chromium, *flags, f"--user-data-dir={tmp_path / 'browser'}", f"file://{page}"]
    subprocess.run([*arguments, f"--screenshot={picture}"], capture_output=True, timeout=180, check=True)
    assert np.asarray(Image.open(picture).convert("L")).std() > 10
    dom = subprocess.run([*arguments, "--dump-dom"], capture_output=True, text=True, timeout=180, check=True).stdout
    assert f"{result['test']['accuracy']:.4f}" in dom
