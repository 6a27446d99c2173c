"""cifar-export: exports agree with the run and load without this package."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import refusals

import cifar_research
from cifar_research import config, export
from cifar_research.config.schema import data_section
from cifar_research.data import datasets
from cifar_research.display import console
from cifar_research.inference import exporting, formats
from cifar_research.inference.exporting import ExportError
from cifar_research.runtime.errors import DataError, RunError
from cifar_research.training.run import run as train_run

# Each prints (probabilities, metadata) of the file it is given, for the images in images.npy, knowing nothing of ours.
READERS = {
    "saved_model": """
import tensorflow as tf
loaded = tf.saved_model.load(path)
probabilities = loaded.signatures["serving_default"](images=tf.constant(images))["probabilities"].numpy()
metadata = json.load(open(path + "/assets.extra/metadata.json"))
assert [name.decode() for name in loaded.signatures["classes"]()["classes"].numpy()] == metadata["classes"]
assert loaded.weights[0].shape.rank == 4 and not isinstance(loaded.weights[0], tf.Tensor)
""",
    "litert": """
from ai_edge_litert import interpreter, schema_py_generated as schema
probabilities = interpreter.Interpreter(path).get_signature_runner()(images=images)["probabilities"]
model = schema.Model.GetRootAs(open(path, "rb").read())
entries = {model.Metadata(i).Name().decode(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
metadata = json.loads(model.Buffers(entries["cifar_research"]).DataAsNumpy().tobytes())
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
(given,), (gives,) = session.get_inputs(), session.get_outputs()
assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3]), given
assert (gives.name, gives.type) == ("probabilities", "tensor(float)"), gives
(probabilities,) = session.run(None, {"images": images})
properties = session.get_modelmeta().custom_metadata_map
metadata = properties | {"classes": json.loads(properties["classes"]), "temperature": float(properties["temperature"])}
""",
}
ALONE = """
import json, sys
class Refuse:
    def find_spec(self, name, *more):
        if name.partition(".")[0] in sys.argv[2].split(","):
            raise ImportError(name + " is not to be had here")
sys.meta_path.insert(0, Refuse())
import numpy as np
path, images = sys.argv[1], np.load("images.npy")
{reader}
assert not [name for name in sys.argv[2].split(",") if name in sys.modules]
np.save("probabilities.npy", probabilities)
json.dump(metadata, open("metadata.json", "w"))
"""
WITHOUT = {
    "saved_model": "cifar_research",
    "litert": "cifar_research,tensorflow",
    "onnx": "cifar_research,tensorflow",
}


def read_alone(kind, path, images, folder):
    """Return an exported model's (probabilities, metadata), from a process without this package."""
    np.save(folder / "images.npy", images)
    code = ALONE.format(reader=READERS[kind])
    arguments = [sys.executable, "-c", code, str(path), WITHOUT[kind]]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "probabilities.npy"), json.loads((folder / "metadata.json").read_text())


def read_here(kind, path, images):
    """Return an exported model's (probabilities, metadata), from this process."""
    values = {"path": str(path), "images": images, "json": json}
    exec(READERS[kind], values)
    return values["probabilities"], values["metadata"]


@pytest.fixture(scope="module")
def classifier(finished_run):
    return cifar_research.load(finished_run)


@pytest.fixture(scope="module")
def some_images(classifier):
    test = datasets.load(data_section(classifier.report["config"]["data"])).test
    return test.images[test.indices]


@pytest.fixture
def call(monkeypatch, capfd):
    """Return a function that calls the command and returns (exit code, output, errors without calibration's)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cifar-export", *map(str, arguments)])
        try:
            export.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        shown = capfd.readouterr()
        # That a run has not been evaluated is said of most runs here; see test_calibration.
        return code, shown.out, re.sub("note: The probabilities are not calibrated: .*\n", "", shown.err)

    return call


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_loads_and_agrees_where_this_package_is_not(call, finished_run, classifier, some_images, kind, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "evaluation.json").write_text('{"temperature": 1.5}')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, err = call(run, "--format", kind)
    assert (code, err) == (0, "")
    path = run / "export" / formats.FORMATS[kind].name
    assert str(path) in out
    assert float(re.search(r"differ by at most (\S+) on 100 test images", out).group(1)) < 1e-5
    assert [result.name for result in (run / "export").iterdir()] == [path.name]
    assert all(path.read_bytes() == content for path, content in before.items())
    probabilities, metadata = read_alone(kind, path, some_images[:37], tmp_path)
    expected = cifar_research.load(run).probabilities(some_images[:37])
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert abs(probabilities - classifier.probabilities(some_images[:37])).max() > 0.01  # the temperature is in it
    assert metadata["classes"] == list(classifier.classes) and metadata["temperature"] == 1.5


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_quantized_is_smaller_and_as_accurate(call, finished_run, classifier, kind, tmp_path):
    test = datasets.load(data_section(classifier.report["config"]["data"])).test
    sizes = {}
    for more in ([], ["--quantize"]):
        code, out, err = call(finished_run, "--format", kind, "--output", tmp_path / "out", *more)
        assert (code, err) == (0, ""), err
        name = formats.FORMATS[kind].quantized_name if more else formats.FORMATS[kind].name
        sizes[name] = (tmp_path / "out" / name).stat().st_size
    assert re.search(r"change of accuracy: [+-]0\.0\d+ on 400 test images", out)
    whole, quantized = sizes.values()
    assert quantized < 0.65 * whole  # much of such a small model is not weights
    images, labels = test.images[test.indices], test.labels[test.indices]
    probabilities, metadata = read_alone(kind, tmp_path / "out" / name, images, tmp_path)
    assert abs((probabilities.argmax(1) == labels).mean() - classifier.report["test"]["accuracy"]) <= 0.01
    assert metadata["quantized"] in (True, "true")


def test_a_bfloat16_run_is_exported_in_float32(call, tmp_path):
    arguments = [
        "data=synthetic", "data.train_images=100", "data.test_images=50", "backbone.filters=[8]", "model.hidden=[16]",
        "training.epochs=1", "tensorboard.enabled=false", "training.precision=bfloat16",
    ]  # fmt: skip
    train_run(config.parse(arguments), tmp_path / "run", console.Display(quiet=True))
    code, out, err = call(tmp_path / "run", "--format", "onnx")
    assert code == 0 and "computed in bfloat16; the export computes in float32" in err and "50 test images" in out
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    probabilities, _ = read_alone("onnx", tmp_path / "run" / "export" / "model.onnx", images, tmp_path)
    run = tmp_path / "run"
    np.testing.assert_allclose(
        probabilities, cifar_research.load(run, precision="float32").probabilities(images), atol=1e-6
    )
    assert abs(probabilities - cifar_research.load(run).probabilities(images)).max() > 1e-5


class Shifted:
    """A format whose reloaded models return other probabilities."""

    def __init__(self, kind, change):
        chosen = formats.FORMATS[kind]

        def opened(path):
            model = chosen.reload(path)
            return lambda images: change(model(images))

        self.format = dataclasses.replace(chosen, reload=opened)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p + np.float32(2e-4), "differ from the run's by 0.0002 on 100 test images, more than 0.0001"),
        (lambda p: p * np.float32("nan"), "differ from the run's by nan"),
        (lambda p: p[:, :5], "the export failed"),
    ],
)
def test_what_is_not_the_run_is_not_kept(call, finished_run, monkeypatch, tmp_path, change, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_text("the one before")
    monkeypatch.setitem(formats.FORMATS, "onnx", Shifted("onnx", change).format)
    code, out, err = call(finished_run, "--format", "onnx", "--output", tmp_path / "out")
    assert code == 1 and re.search(message, err) and "nothing was written" in err and out == ""
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["the one before"]


def test_a_quantized_model_that_has_lost_too_much_is_not_kept(finished_run, monkeypatch, tmp_path):
    def spoilt(probabilities):
        return np.concatenate([np.roll(probabilities[:30], 1, axis=1), probabilities[30:]])  # 30 of 100 images

    monkeypatch.setitem(formats.FORMATS, "onnx", Shifted("onnx", spoilt).format)
    with pytest.raises(ExportError, match=r"change of accuracy: -0\.\d+ on 400 test images, more than 0.01"):
        exporting.export(finished_run, "onnx", quantize=True, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(call, finished_run, monkeypatch, tmp_path):
    def write(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(formats.FORMATS, "onnx", dataclasses.replace(formats.FORMATS["onnx"], write=write))
    code, _, err = call(finished_run, "--format", "onnx", "--output", tmp_path)
    assert code == 1 and "model.onnx: the export failed" in err and "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_writes_over_what_it_wrote_and_over_nothing_else(finished_run, tmp_path):
    first = exporting.export(finished_run, "saved_model", output=tmp_path)
    assert exporting.export(finished_run, "saved_model", output=tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]
    (first / "saved_model.pb").unlink()
    with pytest.raises(RunError, match="exists already, and is not a SavedModel"):
        exporting.export(finished_run, "saved_model", output=tmp_path)


@pytest.fixture
def no_data(monkeypatch):
    def load(data, found_in):
        assert not getattr(data, "download", False)
        raise DataError("data.dir: there are no images here")

    monkeypatch.setattr(datasets, "load", load)


def test_without_its_data_it_is_verified_on_noise_and_says_so(call, no_data, finished_run, tmp_path):
    code, out, err = call(finished_run, "--format", "litert", "--output", tmp_path)
    assert code == 0 and "on 100 random images" in out and "there are no images here" in err
    code, _, err = call(finished_run, "--format", "litert", "--output", tmp_path, "--quantize")
    assert code == 2 and "--quantize: needs the run's images" in err and "or leave out --quantize" in err


def test_other_images_than_the_runs_are_not_taken_for_them(call, finished_run, monkeypatch, tmp_path):
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda data, found_in: load(dataclasses.replace(data, seed=1), found_in))
    code, out, err = call(finished_run, "--format", "onnx", "--output", tmp_path)
    assert code == 0 and "on 100 random images" in out and "the images are not the run's" in err


MISTAKES = [
    (["--format", "saved_model", "--quantize"], "a saved_model cannot be quantized; choose --format litert or onnx"),
    (
        ["--format", "onnx"],
        "--format onnx: needs onnx, tf2onnx, onnxruntime, which are not installed; "
        f"{sys.executable} -m pip install 'cifar_research[export]'",
    ),
    (["--format", "litert"], "needs ai_edge_litert"),
    (["--format", "tflite"], "error: --format: invalid choice: 'tflite'"),
    (["--format", "onnx", "other"], "error: other: takes one run; remove the others"),
    (["--format", "saved_model", "--output", "x", "allow_targets=[my_lab]"], "--output: x is not a directory"),
    (["--format", "saved_model", "--output", "x"], "--output: x is not a directory"),
    ([], "the following arguments are required: --format"),
]


def test_mistakes_are_reported_before_tensorflow_is_imported(finished_run, tmp_path):
    before = (
        "import importlib.util\n"
        "find, extra = importlib.util.find_spec, ('onnx', 'tf2onnx', 'onnxruntime', 'ai_edge_litert')\n"
        "importlib.util.find_spec = lambda name, *more: None if name in extra else find(name, *more)\n"
    )
    (tmp_path / "x").touch()
    lines = [[str(finished_run), *arguments] for arguments, _ in MISTAKES]
    for done, (_, message) in zip(refusals("export", lines, tmp_path, before), MISTAKES, strict=True):
        assert done["code"] == 2 and message in done["stderr"], done
        assert "Traceback" not in done["stderr"] and done["stdout"] == "" and not done["has_tensorflow"], done
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_no_run_is_refused(call, tmp_path):
    code, _, err = call(tmp_path, "--format", "onnx")
    assert code == 2 and "is not the folder of a run" in err and list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A run's folder, images, and the probabilities that it returns for them."""
    arguments = [
        "experiment=fast", "data=synthetic", "data.train_images=100", "data.test_images=50", "training.batch_size=20",
        "backbone.filters=[8,8]", "backbone.activation=gelu", "training.epochs=1", "training.precision=float32",
        "tensorboard.enabled=false",
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("recipe") / "run"
    train_run(config.parse(arguments), folder, console.Display(quiet=True))
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    return folder, images, cifar_research.load(folder, precision="float32").probabilities(images)


@pytest.mark.slow
@pytest.mark.parametrize("kind", formats.FORMATS)
def test_the_recipe_with_its_views_and_an_activation_that_is_compiled_in_training(call, kind, recipe, tmp_path):
    folder, images, expected = recipe
    code, out, err = call(folder, "--format", kind, "--output", tmp_path / "export")
    assert code == 0, err
    path = tmp_path / "export" / formats.FORMATS[kind].name
    # The activation has a gradient of its own, which a SavedModel must not need.
    is_alone = kind == "saved_model"
    probabilities, _ = read_alone(kind, path, images, tmp_path) if is_alone else read_here(kind, path, images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run's folder, images, and the probabilities that it returns for them."""
    arguments = [
        "experiment=transfer", "backbone=mobilenet_v2", "backbone.image_size=64", "backbone.options.alpha=0.35",
        "backbone.weights=none", "training=scratch", "training.epochs=1", "data=synthetic", "data.train_images=100",
        "data.test_images=20", "tensorboard.enabled=false",
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train_run(config.parse(arguments), folder, console.Display(quiet=True))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    return folder, images, cifar_research.load(folder).probabilities(images)


@pytest.mark.slow
@pytest.mark.parametrize("kind", formats.FORMATS)
def test_a_pretrained_backbone_with_its_preprocessing(call, kind, pretrained, tmp_path):
    folder, images, expected = pretrained
    code, out, err = call(folder, "--format", kind, "--output", tmp_path / "export")
    assert (code, err) == (0, "")
    (made,) = (tmp_path / "export").iterdir()
    probabilities, _ = read_here(kind, made, images)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
