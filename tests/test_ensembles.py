"""Ensembles: the mean of several runs' probabilities, evaluated, loaded and predicted with."""

import importlib
import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import refusals
from PIL import Image
from scipy.special import softmax
from test_predict import call  # noqa: F401 — a fixture

import cifar_research
from cifar_research import config
from cifar_research.data import datasets, synthetic
from cifar_research.display import console
from cifar_research.evaluation import calibration, measures
from cifar_research.evaluation.run import groups
from cifar_research.inference import trained
from cifar_research.runs import metrics
from cifar_research.runs.report import read_report, write_report
from cifar_research.training.run import run as train_run

SMALL = [
    "data=synthetic", "data.train_images=600", "data.test_images=300", "training.epochs=4", "training.batch_size=16",
    "backbone.filters=[8,8]", "model.hidden=[16]", "optimizer.learning_rate=0.003", "tensorboard.enabled=false",
    "loss=categorical_crossentropy",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: s0 and s1 differ by their seed, w is wider and in half precision."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in {
        "s0": [],
        "s1": ["seed=1"],
        "w": ["model.hidden=[32]", "training.precision=bfloat16"],
    }.items():
        train_run(config.parse([*SMALL, *overrides]), folder / name, console.Display(quiet=True))
    return folder


@pytest.fixture
def copies(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "copies")


@pytest.fixture(scope="module")
def data():
    return datasets.load(config.parse(SMALL).data)


def members_of(*folders, data):
    return np.stack([cifar_research.load(folder).logits(data.test.images) for folder in folders])


def test_disagreement_by_hand():
    # The predictions are 0 1 2, 0 1 1 and 0 2 1: pairs differ on 1, 2 and 1 of 3 images.
    logits = np.eye(3)[np.array([[0, 1, 2], [0, 1, 1], [0, 2, 1]])]
    assert measures.disagreement(logits) == pytest.approx((1 + 2 + 1) / 9)
    assert measures.disagreement(np.stack([logits[0]] * 3)) == 0


def test_probabilities_are_the_mean(runs, data):
    folders = [runs / "s0", runs / "s1", runs / "w"]
    ensemble = cifar_research.load(folders)
    mean = softmax(members_of(*folders, data=data), axis=2).mean(0)
    np.testing.assert_allclose(ensemble.probabilities(data.test.images), mean, atol=1e-6)
    np.testing.assert_allclose(softmax(ensemble.logits(data.test.images), axis=1), mean, atol=1e-6)
    assert isinstance(ensemble, trained.Classifier) and ensemble.classes == tuple(data.classes)
    assert [label for label, _ in ensemble.predict(data.test.images[:9])] == [
        data.classes[number] for number in mean[:9].argmax(1)
    ]
    assert "the ensemble has not been evaluated" in ensemble.uncalibrated


def test_classes_are_matched_by_name(copies, data):
    path = copies / "s1" / "report.json"
    report = read_report(path)
    report["data"]["classes"] = [*report["data"]["classes"][1:], report["data"]["classes"][0]]
    write_report(path, report)
    logits = members_of(copies / "s0", copies / "s1", data=data)
    mean = (softmax(logits[0], axis=1) + np.roll(softmax(logits[1], axis=1), 1, axis=1)) / 2
    result = cifar_research.load([copies / "s0", copies / "s1"]).probabilities(data.test.images)
    np.testing.assert_allclose(result, mean, atol=1e-6)


def test_an_evaluation_beside_its_members(copies, data):
    folders = [copies / "s0", copies / "s1"]
    result = cifar_research.evaluate(folders)
    logits, labels = members_of(*folders, data=data), data.test.labels
    pooled = np.log(softmax(logits.astype(np.float64), axis=2).mean(0))
    accuracies = (logits.argmax(2) == labels).mean(1)
    assert [row["accuracy"] for row in result["members"]] == pytest.approx(list(accuracies))
    assert [row["seed"] for row in result["members"]] == [0, 1]
    assert [row["config_hash"] for row in result["members"]] == [
        read_report(folder / "report.json")["config_hash"] for folder in folders
    ]
    assert result["mean"]["accuracy"] == pytest.approx(accuracies.mean())
    assert result["mean"]["interval"][0] < accuracies.min() or accuracies[0] == accuracies[1]
    assert result["test"]["accuracy"] == pytest.approx((pooled.argmax(1) == labels).mean())
    assert result["test"]["interval"][0] < result["test"]["accuracy"] < result["test"]["interval"][1]
    assert result["test"]["cross_entropy"] < np.mean([row["cross_entropy"] for row in result["members"]])  # Jensen
    assert result["disagreement"] == pytest.approx((logits[0].argmax(1) != logits[1].argmax(1)).mean()) != 0
    assert (result["confusion"] == metrics.confusion_matrix(labels, pooled.argmax(1), 10)).all()
    assert len(result["by_class"]) == 10 and "corruptions" not in result and "loss" not in result["test"]
    # Calibrated as one, on the validation images.
    rows = data.val.indices
    held_out = np.stack([cifar_research.load(folder).logits(data.val.images[rows]) for folder in folders])
    fitted = calibration.fit_temperature(np.log(softmax(held_out, axis=2).mean(0)), data.val.labels[rows])
    assert result["temperature"] == pytest.approx(fitted, rel=1e-3) and result["temperature_images"] == len(rows)
    assert result["calibration"]["after"]["temperature"] == result["temperature"]
    # Written beside the first run's own, which stays as it was, and read by whoever loads the runs, in any order.
    (path,) = (copies / "s0" / "evaluation").glob("ensemble_*.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert path.with_suffix(".html").is_file()
    shown = path.with_suffix(".md").read_text()
    assert all(f"{folder}, seed {seed}, config " in shown for seed, folder in enumerate(folders))
    figures = {picture.name for picture in (path.parent / "figures").iterdir()}
    assert figures == {f"{path.stem}_{name}.png" for name in ("confusion", "reliability", "misclassified")}
    assert all((path.parent / link).is_file() for link in re.findall(r"\]\(([^)]+)\)", shown))
    assert not (copies / "s0" / "evaluation.json").exists() and not (copies / "s1" / "evaluation").exists()
    for order in (folders, folders[::-1]):
        ensemble = cifar_research.load(order)
        assert ensemble.temperature == result["temperature"] and ensemble.uncalibrated is None
    assert cifar_research.load(copies / "s0").temperature == 1
    other = cifar_research.evaluate(folders, ["data.seed=5", "data.test_images=50"])
    assert other["temperature"] == result["temperature"] and other["test"]["images"] == 50
    assert (copies / "s0" / "evaluation" / "synthetic" / path.name).is_file()


def test_one_run_in_a_list_is_that_run(copies, data):
    run = copies / "s0"
    result = cifar_research.evaluate([run], corruptions=0)
    assert result == json.loads((run / "evaluation.json").read_text()) and "members" not in result
    before = {path: path.read_bytes() for path in (run / "evaluation").rglob("*") if path.is_file()}
    classifier = cifar_research.load([run])
    assert not isinstance(classifier, trained.Ensemble) and classifier.temperature == result["temperature"]
    np.testing.assert_array_equal(
        classifier.logits(data.test.images), cifar_research.load(run).logits(data.test.images)
    )
    # An ensemble leaves the run's own evaluation.
    cifar_research.evaluate([run, copies / "s1"])
    assert json.loads((run / "evaluation.json").read_text()) == result
    assert {path: path.read_bytes() for path in before} == before


def test_no_run_and_the_same_run_twice_are_refused(runs):
    for folders in ([], [runs / "s0", runs / "s0" / ".." / "s0"]):
        for function in (cifar_research.load, cifar_research.evaluate):
            with pytest.raises(trained.RunError, match="needs two runs or more, each of them once"):
                function(folders)


def test_a_sweeps_seeds_are_an_ensemble(copies, capsys):
    members = groups([str(copies)])
    assert members == [[copies / "s0", copies / "s1"]]
    assert f"{copies / 'w'}: is left out; no other run differs from it by the seed only" in " ".join(
        capsys.readouterr().err.split()
    ).replace(" /", " /")
    named = groups([str(copies / name) for name in ("s0", "w", "s0")])
    assert named == [[copies / "s0", copies / "w"]]


def test_commands(copies, monkeypatch, capsys, call, tmp_path):  # noqa: F811
    command = importlib.import_module("cifar_research.evaluate")
    image = tmp_path / "image.png"
    Image.fromarray(datasets.load(config.parse(SMALL).data).test.images[0]).save(image)
    overrides = (copies / "s1", image, "--format", "jsonl", "--ensemble", copies / "s0")
    code, out, err = call(*overrides)
    before = json.loads(out)["predictions"][0]
    assert (
        code == 0 and "the ensemble has not been evaluated on its own data; scripts/evaluate fits a temperature" in err
    )
    monkeypatch.setattr(sys, "argv", ["cifar-evaluate", str(copies / "s0"), str(copies / "s1"), "--ensemble"])
    command.main()
    shown = capsys.readouterr().out
    assert "mean of the 2 runs" in shown and re.search(r"^ensemble +300 ", shown, re.MULTILINE)
    assert "Two runs disagree on" in shown and "The temperature was fitted on 60 validation images" in shown
    code, out, err = call(*overrides)
    after = json.loads(out)["predictions"][0]
    assert code == 0 and err == "" and after["class"] == before["class"]
    assert after["probability"] != before["probability"]
    expected = cifar_research.load([copies / "s0", copies / "s1"]).predict(image)[0]
    assert after["probability"] == pytest.approx(expected.probability, abs=1e-5)


def change(folder, **values):
    """Change a run's report; a__b is the key a.b."""
    report = read_report(folder / "report.json")
    for key, value in values.items():
        node = report
        *parents, last = key.split("__")
        for name in parents:
            node = node[name]
        node[last] = value
    write_report(folder / "report.json", report)


MISTAKES = {
    "one run": ("{s0} --ensemble", {}, "--ensemble: needs two completed runs or more that differ by the seed only"),
    "the same run": ("{s0} {s0} --ensemble", {}, "needs two completed runs or more"),
    "against": ("{s0} {s1} --ensemble --against {w}", {}, "--ensemble: cannot be used with --against"),
    "views": ("{s0} {s1} --ensemble --views flip", {}, "--ensemble: is only for the test images"),
    "classes": (
        "{s0} {s1} --ensemble",
        {"data__classes": [*synthetic.CLASSES[1:], "zebra"]},
        "s1: has classes=zebra, ",
    ),
    "data": ("{s0} {s1} --ensemble", {"data__fingerprint": "0"}, "s1: has data.fingerprint=0, and"),
    "split": ("{s0} {s1} --ensemble", {"config__data__split_seed": 3}, "s1: has data.split_seed=3, and"),
    "fold": ("{s0} {s1} --ensemble", {"config__data__fold": 1}, "s1: has data.fold=1, and"),
    "not completed": ("{s0} {s1} --ensemble", {"status": "stopped"}, "no run in it was completed"),
    "nothing": ("nowhere {s1} --ensemble", {}, "nowhere: there is no such folder"),
    "predict: itself": (
        "{s0} {s0}/figures --ensemble {s0}",
        {},
        "an ensemble needs two runs or more, each of them once",
    ),
    "predict: classes": ("{s0} x.png --ensemble {s1}", {"data__classes": ["a", "b"]}, "give runs of the same classes"),
    "predict: no run": ("{s0} x.png --ensemble nowhere", {}, "nowhere: is not the folder of a run"),
}


def test_images_of_another_size_are_refused(runs, monkeypatch):
    monkeypatch.setattr(trained, "image_size", lambda report: 32 + report["seed"])
    with pytest.raises(
        trained.RunError, match="s1: has data.image_size=33, and .*s0 has 32; give runs of the same data.image_size"
    ):
        cifar_research.load([runs / "s0", runs / "s1"])


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_write_nothing(copies, tmp_path, name):
    overrides, changes, message = MISTAKES[name]
    if changes:
        change(copies / "s1", **changes)
    before = {path: path.stat().st_mtime_ns for path in copies.rglob("*")}
    line = overrides.format(s0=copies / "s0", s1=copies / "s1", w=copies / "w").split()
    (done,) = refusals("predict" if name.startswith("predict") else "evaluate", [line], tmp_path)
    assert done["code"] == 2 and message in done["stderr"] and not done["has_tensorflow"], done
    assert {path: path.stat().st_mtime_ns for path in copies.rglob("*")} == before


def test_a_damaged_file_of_an_ensemble_is_reported(copies):
    cifar_research.evaluate([copies / "s0", copies / "s1"])
    (path,) = (copies / "s0" / "evaluation").glob("ensemble_*.json")
    path.write_text("{")
    with pytest.raises(trained.RunError, match=f"{path.name}: is damaged"):
        cifar_research.load([copies / "s0", copies / "s1"])
