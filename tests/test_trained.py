"""A finished run as a classifier: scores as reported, no data needed, bad folders rejected."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import cifar_research
from cifar_research import config
from cifar_research.config.schema import data_section
from cifar_research.data import datasets
from cifar_research.display import console
from cifar_research.runs.report import read_report, write_report
from cifar_research.runtime.errors import ImageError, RunError
from cifar_research.training.run import run as train_run

SMALL = [
    "data=synthetic", "data.train_images=100", "data.test_images=50", "backbone.filters=[8]", "model.hidden=[16]",
    "training.epochs=1", "loss=categorical_crossentropy", "tensorboard.enabled=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def classifier(finished_run):
    return cifar_research.load(finished_run)


@pytest.fixture
def copy(finished_run, tmp_path):
    """Return a copy of the run's folder, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "copy")


def images_of_test(classifier):
    test = datasets.load(data_section(classifier.report["config"]["data"])).test
    return test.images[test.indices], test.labels[test.indices]


def change(folder, **more):
    """Change the report: a.b=value is given as a__b=value."""
    path = folder / "report.json"
    report = read_report(path)
    for key, value in more.items():
        node = report
        *parents, last = key.split("__")
        for name in parents:
            node = node[name]
        node[last] = value
    write_report(path, report)


def test_import_of_the_package_leaves_tensorflow_out():
    code = "import cifar_research, sys; print(*cifar_research.__all__, 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    names = "Backbone Head Loss TrackedRun Tracker Transform evaluate load runs sweep train"
    assert done.stdout.split() == [*names.split(), "False"]
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = cifar_research.lode


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_scores_as_the_report_says(classifier, tmp_path, precision):
    if precision != "float32":
        settings = config.parse([*SMALL, f"training.precision={precision}"])
        train_run(settings, tmp_path / "run", console.Display(quiet=True))
        classifier = cifar_research.load(tmp_path / "run")
        assert classifier.model.layers[1].compute_dtype == precision
    images, labels = images_of_test(classifier)
    probabilities = classifier.probabilities(images)
    assert probabilities.dtype == np.float32 and probabilities.shape == (len(images), 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() == classifier.report["test"]["accuracy"]
    chosen = probabilities[np.arange(len(labels)), labels]
    assert -np.log(chosen).mean() == pytest.approx(classifier.report["test"]["loss"], rel=0.02)


def test_needs_no_data(finished_run, classifier, monkeypatch):
    images, _ = images_of_test(classifier)
    expected = classifier.logits(images)
    monkeypatch.setattr(datasets, "load", lambda data: pytest.fail("the data set was asked for"))
    again = cifar_research.load(str(finished_run))
    assert again.report["data"]["standardization"] and (again.logits(images) == expected).all()
    assert again.classes == tuple(again.report["data"]["classes"]) and again.image_shape == (32, 32, 3)


def test_the_policy_of_the_process_stays(finished_run):
    import keras

    before = keras.config.dtype_policy()
    half = cifar_research.load(finished_run, precision="bfloat16")
    assert keras.config.dtype_policy() == before and half.model.layers[1].compute_dtype == "bfloat16"


def test_batches_do_not_matter(classifier):
    images, _ = images_of_test(classifier)
    whole = classifier.logits(images)
    np.testing.assert_allclose(classifier.logits(images, batch_size=7), whole, atol=1e-4)
    assert classifier.logits(images[:0]).shape == (0, 10)
    assert classifier._traced.structured_input_signature[0][0].shape == (None, 32, 32, 3)
    for bad in (images[0], images[:, :16], images.astype(np.float32)):
        with pytest.raises(ValueError, match=r"is not uint8 \[N, 32, 32, 3\]"):
            classifier.logits(bad)


def test_another_way_through_the_model_is_taken(finished_run, classifier):
    images, _ = images_of_test(classifier)
    other = cifar_research.load(finished_run)
    plain = other.network
    other.network = lambda images, training: plain(images, training) + plain(images[:, :, ::-1], training)
    expected = classifier.logits(images) + classifier.logits(np.ascontiguousarray(images[:, :, ::-1]))
    np.testing.assert_allclose(other.logits(images), expected, atol=1e-4)


def test_predict_takes_files_pictures_and_arrays(classifier, tmp_path):
    images, labels = images_of_test(classifier)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    expected = classifier.probabilities(images[:2])
    for given in (images[:2], list(images[:2]), (Image.fromarray(image) for image in images[:2])):
        result = classifier.predict(given)
        assert [name for name, _ in result] == [classifier.classes[i] for i in expected.argmax(1)]
        np.testing.assert_allclose([p for _, p in result], expected.max(1), rtol=1e-4)
    for one in (images[0], Image.fromarray(images[0]), tmp_path / "a.png", str(tmp_path / "a.png")):
        ((label, probability),) = classifier.predict(one)
        assert label == classifier.classes[expected[0].argmax()] and probability == pytest.approx(
            expected[0].max(), 1e-4
        )
    large = Image.fromarray(images[0]).resize((100, 50)).convert("CMYK")
    assert len(classifier.predict([large, tmp_path / "a.png"])) == 2 and classifier.predict([]) == []
    with pytest.raises(ImageError, match="nothing.png: cannot be read as an image"):
        classifier.predict(tmp_path / "nothing.png")


def test_temperature_is_that_of_the_evaluation(copy, classifier):
    images, _ = images_of_test(classifier)
    assert classifier.temperature == 1 and "has not been evaluated" in classifier.uncalibrated
    (copy / "evaluation.json").write_text('{"temperature": 2.5}')
    cooled = cifar_research.load(copy)
    assert cooled.temperature == 2.5 and cooled.uncalibrated is None
    np.testing.assert_allclose(cooled.probabilities(images), softmax(classifier.logits(images) / 2.5, axis=1), 1e-5)
    (copy / "evaluation.json").write_text('{"temperature": 1.0, "uncalibrated": "too few"}')
    assert cifar_research.load(copy).uncalibrated == "too few"
    for text in ('{"temperature": 0}', '{"temperature": -1}', '{"temperature": "hot"}', '{"temp', "[]", "{}"):
        (copy / "evaluation.json").write_text(text)
        with pytest.raises(RunError, match="evaluation.json: is damaged"):
            cifar_research.load(copy)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "is not the folder of a run"),
        (lambda run: os.unlink(run / "report.json"), "is not the folder of a run that has ended"),
        (lambda run: change(run, status="stopped"), "not completed, it is stopped"),
        (lambda run: change(run, status="diverged"), "not completed, it is diverged"),
        (lambda run: change(run, status="odd"), "report.json: is damaged"),
        (lambda run: change(run, data=None), "report.json: is damaged"),
        (lambda run: change(run, config__model=3), "report.json: is damaged"),
        (lambda run: change(run, config__training__precision="int4"), "report.json: is damaged"),
        (lambda run: os.unlink(run / "model.weights.h5"), "model.weights.h5: is missing"),
        (lambda run: (run / "model.weights.h5").write_bytes(b""), "model.weights.h5: cannot be loaded"),
        (lambda run: os.truncate(run / "model.weights.h5", 9_000), "model.weights.h5: cannot be loaded"),
        (lambda run: change(run, config__backbone__filters=[8, 8]), "builds a model of"),
        (lambda run: change(run, config__backbone__filtres=[8]), "backbone.filtres: cnn has no parameter"),
    ],
)  # fmt: skip
def test_a_folder_without_a_finished_run_is_refused(copy, spoil, message):
    spoil(copy)
    with pytest.raises(RunError, match=message) as error:
        cifar_research.load(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(copy, tmp_path):
    overrides = [*SMALL, "backbone.filters=[16,8]", "backbone.batch_norm=true", "model=wide", "model.hidden=[32]"]
    train_run(config.parse(overrides), tmp_path / "other", console.Display(quiet=True))
    shutil.copy(tmp_path / "other" / "model.weights.h5", copy)
    with pytest.raises(RunError, match="cannot be loaded into the model"):
        cifar_research.load(copy)


def test_a_whole_model_in_the_weights_place_is_not_rebuilt(copy, tmp_path, monkeypatch):
    import keras

    monkeypatch.chdir(tmp_path)
    inner = keras.layers.Lambda(lambda x: (__import__("pathlib").Path("called").touch(), x)[1])
    keras.Sequential([keras.Input((3,)), inner]).save("evil.h5")
    (tmp_path / "called").unlink()
    shutil.copy("evil.h5", copy / "model.weights.h5")
    with pytest.raises(RunError, match="cannot be loaded into the model"):
        cifar_research.load(copy)
    assert not (tmp_path / "called").exists()
