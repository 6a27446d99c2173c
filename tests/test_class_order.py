"""Runs and data sets with another order of classes: matched by name."""

import json
import shutil

import numpy as np
import pytest

from cifar_research.data import synthetic
from cifar_research.evaluation import images
from cifar_research.evaluation.run import compare, evaluate
from cifar_research.inference import trained
from cifar_research.runs.report import read_report, write_report
from cifar_research.runtime.errors import DataError


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """A run `a`, and the same network as `b` with its classes and its last layer in reverse order."""
    folder = tmp_path_factory.mktemp("runs")
    for name in "ab":
        shutil.copytree(finished_run, folder / name)
    report = read_report(folder / "b" / "report.json")
    report["data"]["classes"].reverse()
    write_report(folder / "b" / "report.json", report)
    model = trained.load(finished_run).model
    kernel, bias = (weight for weight in model.weights if weight.shape[-1] == 10)
    for weight in (kernel, bias):
        weight.assign(weight.numpy()[..., ::-1])
    model.save_weights(folder / "b" / "model.weights.h5")
    return folder


def accuracy(run):
    return read_report(run / "report.json")["test"]["accuracy"]


def test_two_runs_are_compared_by_class_name(runs):
    text = compare([runs / "a"], [runs / "b"])
    result = json.loads((runs / "a" / "evaluation" / "against_b.json").read_text())
    assert result["first"]["accuracies"] == result["second"]["accuracies"] == [pytest.approx(accuracy(runs / "a"))]
    assert result["p"] is None and "are right on the same images" in text
    assert result["classes"] == list(synthetic.CLASSES)


def test_a_run_is_evaluated_on_data_of_another_order(runs):
    report, overrides = trained.read(runs / "a"), [f"data.classes=[{','.join(synthetic.CLASSES[::-1])}]"]
    data, other = images.load(report, overrides)
    own, _ = images.load(report, [])
    assert data.classes == own.classes == synthetic.CLASSES and other == "synthetic"
    for name in ("train", "val", "test"):
        split, same = getattr(data, name), getattr(own, name)
        assert (split.labels[split.indices] == same.labels[same.indices]).all()
    evaluate([[runs / "a"]], overrides, corrupted=0)
    result = json.loads((runs / "a" / "evaluation" / "synthetic" / "evaluation.json").read_text())
    assert result["test"]["accuracy"] == pytest.approx(accuracy(runs / "a"))


def test_cifar10_1_is_labelled_by_the_runs_order(tmp_path):
    names = images._CIFAR10
    np.save(tmp_path / "cifar10.1_v6_data.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(10))
    _, labels = images.cifar10_1(str(tmp_path), names[::-1])
    assert [names[::-1][label] for label in labels] == list(names)


def test_other_classes_are_refused(runs):
    overrides = [f"data.classes=[{','.join(synthetic.CLASSES[:9])}]"]
    with pytest.raises(DataError, match="give data of those classes"):
        images.load(trained.read(runs / "a"), overrides)
