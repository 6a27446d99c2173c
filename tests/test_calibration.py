"""A temperature is used only if it was fitted on enough images."""

import json
import shutil

import numpy as np
import pytest

from cifar_research.evaluation import against, calibration, scores, sections
from cifar_research.evaluation.run import evaluate
from cifar_research.inference import prediction, trained
from cifar_research.inference.exporting import export


def logits_of(num, wrong, classes=3):
    """Return logits [num, classes], of which `wrong` are misclassified by different margins, and labels [num]."""
    rng = np.random.default_rng(0)
    labels = np.arange(num) % classes
    guesses = np.where(np.arange(num) < wrong, (labels + 1) % classes, labels)
    return np.eye(classes)[guesses] * rng.uniform(1, 6, (num, 1)), labels


@pytest.mark.parametrize(
    ("num", "wrong", "reason"),
    [
        (200, 40, None),
        (50, 10, None),
        (49, 15, "15 of 49 validation images are misclassified, and a temperature needs at least 50 images"),
        (4, 0, "0 of 4 validation images are misclassified"),
        (1, 1, "1 of 1 validation images are misclassified"),
        (0, 0, "0 of 0 validation images are misclassified"),
        (5000, 0, "0 of 5,000 validation images are misclassified"),
        (5000, 9, "9 of 5,000 validation images are misclassified"),
        (5000, 5000, "5,000 of 5,000"),
        (5000, 4991, "at least 10 of them right and 10 wrong"),
        (200, 150, "ended at its bound, 50"),  # it is wrong the surer it is
    ],
)
def test_a_temperature_needs_enough_images_of_both_kinds(num, wrong, reason):
    result = calibration.temperature(*logits_of(num, wrong))
    if reason is None:
        assert result.reason is None and result.num_images == num and 0.02 < result.value < 50
    else:
        assert result[:2] == (1.0, None) and reason in result.reason


def test_one_class_only():
    result = calibration.temperature(np.ones((100, 3)) * [1, 0, 0], np.zeros(100, int))
    assert result[:2] == (1.0, None)
    rows = scores.by_class(np.array([[5, 0], [0, 0]]), "ab")
    assert rows[1] == {"class": "b", "precision": None, "recall": None, "f1": None, "images": 0}


@pytest.mark.parametrize(("num", "is_known"), [(1, False), (299, False), (300, True)])
def test_an_ece_needs_enough_images(num, is_known):
    result = calibration.measures(*logits_of(num, num // 2))
    assert (result["ece"] is not None) is is_known and np.isfinite(result["cross_entropy"])


@pytest.fixture(scope="module")
def uncalibrated(finished_run, tmp_path_factory):
    """A copy of the run, evaluated as if all of its validation images were classified correctly."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("few") / "run")
    patch = pytest.MonkeyPatch()
    patch.setattr(calibration, "MIN_IMAGES", 10**6)
    with patch.context():
        [(_, text)] = evaluate([[run]], corrupted=0)
    patch.undo()
    return run, text


def test_the_reason_is_in_every_report(uncalibrated):
    run, text = uncalibrated
    result = json.loads((run / "evaluation.json").read_text())
    assert (
        result["temperature"] == 1
        and result["calibration"]["after"] is None
        and "validation images" in result["uncalibrated"]
    )
    assert f"not calibrated: {result['uncalibrated']}" in text
    for name in ("report.html", "report.md"):
        assert f"not calibrated: {result['uncalibrated']}" in (run / "evaluation" / name).read_text()
    assert trained.load(run).uncalibrated == result["uncalibrated"]


def test_predict_and_export_say_why(uncalibrated, capfd, tmp_path):
    run, _ = uncalibrated
    reason = json.loads((run / "evaluation.json").read_text())["uncalibrated"]
    export(run, "saved_model", output=tmp_path)
    assert f"not calibrated: {reason}" in " ".join(capfd.readouterr().err.split())
    prediction.note_uncalibrated(trained.load(run))
    assert f"not calibrated: {reason}" in capfd.readouterr().err


def comparison(first, second, labels, seeds):
    result = against.compare(first, second, labels, "ab", [[(seed, None) for seed in own] for own in seeds])
    return result | {"data": {"note": None, "is_own": True}, "classes": ["a", "b"], "runs": {}, "differences": []}


def test_a_comparison_of_too_little_gives_no_p():
    labels = np.array([0, 1, 0, 1])
    right = np.stack([np.eye(2)[labels]] * 2)
    result = comparison(right, right, labels, ([0, 1], [0, 1]))
    assert result["p"] is None and result["p_of_seeds"] is None and result["first"]["interval"] is None
    json.dumps(result, allow_nan=False)
    text = sections.as_text(sections.comparison(result, []), ["Accuracy"])
    assert "McNemar's test cannot compare them" in text and "no t-test over seeds" in text and "no spread" in text
    wrong = right[:1, :, ::-1]
    alone = comparison(right[:1], wrong, labels, ([0], [0]))
    text = sections.as_text(sections.comparison(alone, []), ["Accuracy"])
    assert "4 images are too few to show a difference" in text
    assert sections.comparison(result, [])[1].parts[0][1][-2:] == ["–", "–"]
