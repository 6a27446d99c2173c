"""Pretrained backbones: sources of weights; every technique with augmentation."""

import contextlib
import functools
import hashlib
import http.server
import io
import threading
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_networks import small_mobilenet  # noqa: F401
from test_phases import MOBILENET, entered

from cifar_research import config
from cifar_research.models import classifier, layers
from cifar_research.models.backbones import pretrained, weights
from cifar_research.models.backbones.of_keras import Resize, of_keras
from cifar_research.runs import checkpoint
from cifar_research.runtime.errors import ConfigError, WeightsError
from cifar_research.training import steps
from cifar_research.training.run import run as train_run

BACKBONES = ("mobilenet_v2", "densenet121", "vgg16", "efficientnet_v2_b0", "resnet50", "efficientnet_lite0")
SIZE_32 = ["experiment=transfer", "backbone.image_size=32", "backbone.weights=none"]


def application(alpha=0.35, **settings):
    settings = {"include_top": False, "weights": None, "input_shape": (32, 32, 3), "alpha": alpha} | settings
    return keras.applications.mobilenet_v2.MobileNetV2(**settings)


def built(*overrides):
    """Return the task that a mobilenet's config builds, with its weights."""
    task, _ = entered("training=scratch", *overrides, base=MOBILENET)
    return task


def assert_same_weights(backbone, source):
    assert len(backbone.weights) == len(source.weights)
    for ours, theirs in zip(backbone.weights, source.weights, strict=True):
        assert ours.path == theirs.path
        assert (ours.value.numpy() == theirs.value.numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in ("densenet121", "resnet50")])
def test_every_technique_takes_a_step_with_augmentation(backbone):
    for technique, phase in (("feature_extraction", 0), ("fine_tuning", 0), ("combined", 0), ("combined", 1)):
        if technique == "combined" and backbone != BACKBONES[0]:
            continue  # its phases train what the other two train
        overrides = [f"backbone={backbone}", f"training={technique}", "augmentation=slides"]
        task, seen = entered(*overrides, phase=phase, base=SIZE_32)
        batch = seen.train.images[:4], tf.constant(seen.train.labels[:4])
        totals = steps.train_step(task, *batch).numpy()
        assert totals[2] == 4 and np.isfinite(totals).all(), technique
    # Runs use what autograph makes of it.
    totals = tf.function(functools.partial(steps.train_step, task))(*batch)
    assert np.isfinite(totals.numpy()).all()


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "vgg16"])
def test_it_computes_what_the_application_computes(backbone):
    settings = config.parse([*SIZE_32, "training=scratch", f"backbone={backbone}", "backbone.image_size=64"])
    ours, section = settings.backbone.build((32, 32, 3)), settings.content["backbone"]
    home = getattr(keras.applications, section["module"])
    theirs = getattr(home, section["application"])(include_top=False, weights=None, input_shape=(64, 64, 3))
    for mine, its in zip(ours.weights, theirs.weights, strict=True):
        mine.assign(its)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    resized = tf.image.resize(images, (64, 64)) * 255
    np.testing.assert_allclose(ours(images), theirs(home.preprocess_input(resized)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gpus", [[], ["a GPU"]])
def test_depthwise_convolutions_are_in_float32_on_a_cpu(monkeypatch, gpus):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    keras.config.set_dtype_policy("mixed_bfloat16")
    made = config.parse([*SIZE_32, "training=scratch", "backbone=efficientnet_lite0"]).backbone.build((32, 32, 3))
    result = {type(layer).__name__: layer.compute_dtype for layer in classifier.leaves(made) if layer.weights}
    assert result == {
        "Conv2D": "bfloat16", "BatchNormalization": "bfloat16", "DepthwiseConv2D": "bfloat16" if gpus else "float32"
    }  # fmt: skip
    assert made(np.zeros((1, 32, 32, 3))).dtype == "bfloat16"


def test_batch_norm_and_dropout_are_ours():
    backbone = config.parse([*SIZE_32, "training=scratch", "backbone=efficientnet_v2_b0"]).backbone
    result = classifier.leaves(backbone.build((32, 32, 3)))
    assert any(isinstance(layer, layers.Dropout) and layer.noise_shape for layer in result)
    for kind, ours in (
        (keras.layers.BatchNormalization, layers.BatchNormalization),
        (keras.layers.Dropout, layers.Dropout),
    ):
        assert all(isinstance(layer, ours) for layer in result if isinstance(layer, kind))


def test_layers_of_nested_networks_are_ours_and_random_weights_are_not_loaded():
    def make():
        inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
        images = keras.Input((8, 8, 3))
        return keras.Model(images, keras.layers.Conv2D(4, 3)(inner(images)))

    backbone = of_keras(make, name="nested", resize=Resize(8))
    kinds = [type(layer) for layer in classifier.leaves(backbone.build((8, 8, 3)))]
    assert layers.BatchNormalization in kinds and layers.Dropout in kinds
    assert keras.layers.BatchNormalization not in kinds and keras.layers.Dropout not in kinds
    assert backbone.load_weights is None and not backbone.runs_in_inference


@pytest.mark.parametrize(("interpolation", "antialias"), [("bicubic", False), ("bicubic", True), ("bilinear", True)])
@pytest.mark.parametrize("size", [12, 40])
def test_images_are_resized_as_tensorflow_does(interpolation, antialias, size):
    images = np.random.default_rng(0).random((2, 20, 24, 3), np.float32)
    expected = tf.clip_by_value(tf.image.resize(images, (size, size), interpolation, antialias=antialias), 0, 1)
    np.testing.assert_allclose(Resize(size, interpolation, antialias)(images), expected, atol=1e-6)


@pytest.mark.usefixtures("small_mobilenet")
def test_one_image_leaves_no_weight_of_a_backbone_nan(like_cudnn):
    task = built("backbone.weights=none", "training.batch_size=1")
    step = tf.function(lambda: steps.train_step(task, tf.ones([1, 32, 32, 3], tf.uint8), tf.ones([1], tf.int64)))
    assert np.isfinite([step().numpy() for _ in range(2)]).all()
    assert all(np.isfinite(weight.numpy()).all() for weight in task.model.weights)


@pytest.mark.usefixtures("small_mobilenet")
@pytest.mark.parametrize(("mode", "momentum"), [("train", 0.9), ("inference", 0.999)])
def test_moving_statistics_forget_within_a_run(tmp_path, mode, momentum):
    application().save_weights(tmp_path / "a.weights.h5")
    task = built(f"backbone.weights={tmp_path / 'a.weights.h5'}", f"backbone.batch_norm={mode}")
    result = [
        layer.momentum for layer in classifier.leaves(classifier.parts(task.model)[0]) if hasattr(layer, "momentum")
    ]
    assert set(result) == {momentum}


def test_a_mask_of_a_noise_shape_is_one_for_each_image():
    with layers.called_with(seed=tf.constant([1, 2])):
        kept = layers.Dropout(0.5, noise_shape=(None, 1, 1, 1))(tf.ones([64, 4, 4, 3]), training=True).numpy()
    assert (kept == kept[:, :1, :1, :1]).all() and 0.2 < (kept == 0).mean() < 0.8


@pytest.mark.usefixtures("small_mobilenet")
def test_weights_of_files(tmp_path):
    source = application()
    source.save_weights(tmp_path / "a.weights.h5")
    source.save(tmp_path / "a.keras")
    for name in ("a.weights.h5", "a.keras"):
        assert_same_weights(classifier.parts(built(f"backbone.weights={tmp_path / name}").model)[0], source)


@pytest.mark.usefixtures("small_mobilenet")
def test_weights_of_a_run_whatever_its_head(tmp_path):
    small = ["data=synthetic", "data.train_images=100", "data.test_images=20", "training.epochs=1"]
    overrides = [*MOBILENET, "backbone.weights=none", "model=wide", "model.hidden=[8]", "training=scratch", *small]
    train_run(config.parse([*overrides, "tensorboard.enabled=false"]), tmp_path / "run")
    task = built(f"backbone.weights={tmp_path / 'run'}")
    whole = built("backbone.weights=none", "model=wide", "model.hidden=[8]")
    whole.model.load_weights(tmp_path / "run" / "model.weights.h5")
    assert_same_weights(classifier.parts(task.model)[0], classifier.parts(whole.model)[0])
    (best,) = (tmp_path / "run" / "checkpoints").glob("step-*.ckpt")
    saved = checkpoint.read(best).arrays
    for weight in classifier.parts(task.model)[0].weights:
        assert (weight.value.numpy() == saved[f"model/{weight.path}"]).all()

    with warnings.catch_warnings(record=True) as shown, pytest.raises(WeightsError, match="give its run folder"):
        warnings.simplefilter("always")
        built(f"backbone.weights={tmp_path / 'run' / 'model.weights.h5'}")
    assert not [warning for warning in shown if "Skipping" in str(warning.message)]
    with pytest.raises(WeightsError, match=r"Conv1/kernel is \(3, 3, 3, 16\) in it, and \(3, 3, 3, 24\)"):
        built(f"backbone.weights={tmp_path / 'run'}", "backbone.options.alpha=0.75")
    (tmp_path / "run" / "model.weights.h5").write_bytes(b"\x89HDF half")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        built(f"backbone.weights={tmp_path / 'run'}")
    (tmp_path / "run" / "model.weights.h5").unlink()
    with pytest.raises(ConfigError, match=r"run holds no weights"):
        built(f"backbone.weights={tmp_path / 'run'}")


@pytest.mark.usefixtures("small_mobilenet")
def test_a_head_in_the_file_is_left_out_whatever_its_classes(tmp_path):
    source = application(include_top=True, classes=7)
    source.save_weights(tmp_path / "top.weights.h5")
    source.save(tmp_path / "top.keras")
    for name in ("top.weights.h5", "top.keras"):
        backbone = classifier.parts(built(f"backbone.weights={tmp_path / name}").model)[0]
        for ours, theirs in zip(backbone.weights, source.weights[:-2], strict=True):
            assert (ours.value.numpy() == theirs.value.numpy()).all()
    keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3)]).save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match="is for a different network"):
        built(f"backbone.weights={tmp_path / 'other.keras'}")


@pytest.mark.usefixtures("small_mobilenet")
def test_a_keras_file_cannot_run_code(tmp_path):
    inner = keras.layers.Lambda(lambda x: x)
    keras.Sequential([keras.Input((3,)), inner]).save(tmp_path / "evil.keras")
    with pytest.raises(WeightsError, match="cannot be loaded into"):
        built(f"backbone.weights={tmp_path / 'evil.keras'}")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w"):
        pass
    with pytest.raises(WeightsError, match="cannot be loaded into"):
        built(f"backbone.weights={tmp_path / 'empty.keras'}")


@pytest.mark.usefixtures("small_mobilenet")
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_foreign_models_lambda_is_not_called(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    inner = keras.layers.Lambda(lambda x: (__import__("pathlib").Path("called").touch(), x)[1])
    keras.Sequential([keras.Input((3,)), inner]).save(f"evil.{suffix}")
    (tmp_path / "called").unlink()
    keras.saving.load_model(f"evil.{suffix}", safe_mode=False)(np.zeros([1, 3]))
    (tmp_path / "called").unlink()  # so it would be, by who trusts it
    with pytest.raises(WeightsError, match=f"evil.{suffix}"):
        built(f"backbone.weights={tmp_path / f'evil.{suffix}'}")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ("backbone.image_size=24", ["image_size", "24", "32"]),
        ("backbone.image_size=2000", ["image_size", "2000", "1024"]),
        ("backbone.weights=nowhere", ["weights", "nowhere", "does not exist"]),
        ("backbone.weights=none backbone.batch_norm=inference", ["batch_norm", "inference", "train"]),
        ("backbone.batch_norm=false", ["batch_norm", "false"]),
        ("backbone.alpha=0.35", ["alpha"]),
        ("data.standardize=true", ["data.standardize", "scales images itself"]),
        ("backbone=mobilenet", ["mobilenet_v2"]),
    ],
)
def test_bad_settings_are_refused_before_tensorflow(overrides, parts):
    with pytest.raises(ConfigError) as error:
        config.parse(["experiment=transfer", *overrides.split()])
    assert not [part for part in parts if part not in str(error.value)], str(error.value)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ("backbone.application=MobilNetV2", "keras.applications has no"),
        ("+backbone.options.alhpa=1", "rejects its settings"),
        ("backbone.weights=imagenet backbone.options.alpha=0.33", "rejects its settings"),
    ],
)
def test_settings_that_keras_rejects_are_reported(overrides, part):
    with pytest.raises(WeightsError, match=part):
        built("backbone.weights=none", *overrides.split())


class Server(http.server.BaseHTTPRequestHandler):
    content, length = b"", 0

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(self.length))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An EfficientNetV2 and the file of its weights."""
    model = keras.applications.EfficientNetV2B0(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("served") / "served.weights.h5"
    model.save_weights(path)
    return model, path


@pytest.fixture
def hub(source, tmp_path, monkeypatch):
    """A server of EfficientNetV2's weights in place of Keras's own; Keras checks their hash."""
    from keras.src.applications import efficientnet_v2
    from keras.src.utils import file_utils

    model, path = source
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Server, "content", path.read_bytes())
    monkeypatch.setattr(Server, "length", path.stat().st_size)
    monkeypatch.setattr(efficientnet_v2, "BASE_WEIGHTS_PATH", f"http://127.0.0.1:{server.server_port}/")
    known = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(efficientnet_v2.WEIGHTS_HASHES, "b0", ("", known))
    (tmp_path / "keras").mkdir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path / "keras"))
    # Keras saves in the newer format by this name alone, and its own weights are of the older one.
    suffix = ".weights.h5"
    get_file = file_utils.get_file
    monkeypatch.setattr(
        efficientnet_v2.file_utils,
        "get_file",
        lambda name, url, **more: get_file(name.removesuffix(".h5") + suffix, url, **more),
    )
    yield model
    server.shutdown()
    server.server_close()


def imagenet():
    """Return an EfficientNetV2 with the weights of the server."""
    with contextlib.redirect_stdout(io.StringIO()):
        return weights._of_source(
            "imagenet",
            functools.partial(pretrained._application, "efficientnet_v2", "EfficientNetV2B0", 32, {}, "imagenet"),
        )


def test_imagenet_weights_are_downloaded_verified_and_kept(hub, tmp_path, monkeypatch):
    overrides = ["experiment=transfer", "backbone=efficientnet_v2_b0", "backbone.image_size=32", "training=scratch"]
    with contextlib.redirect_stdout(io.StringIO()):
        task, _ = entered(*overrides, base=[])
    assert_same_weights(classifier.parts(task.model)[0], hub)
    assert len(list((tmp_path / "keras" / "models").glob("*.h5"))) == 1
    monkeypatch.setattr(Server, "content", b"")
    assert_same_weights(imagenet(), hub)  # from the cache


def test_half_a_file_and_other_bytes_than_the_hash_says_are_refused_and_not_kept(hub, tmp_path, monkeypatch):
    content = Server.content
    for wrong, reason in ((content[: len(content) // 2], "imagenet"), (content[:-1] + b"x", "hash")):
        monkeypatch.setattr(Server, "content", wrong)
        with pytest.raises(WeightsError, match=reason):
            imagenet()
        assert reason == "hash" or not list((tmp_path / "keras" / "models").glob("*.h5"))


def test_without_a_server_one_sentence_names_the_file_and_the_folder(hub, tmp_path, monkeypatch):
    from keras.src.applications import efficientnet_v2

    monkeypatch.setattr(efficientnet_v2, "BASE_WEIGHTS_PATH", "http://127.0.0.1:9/")
    with pytest.raises(WeightsError) as error:
        imagenet()
    message = str(error.value)
    assert "efficientnetv2-b0_notop.h5" in message and str(tmp_path / "keras" / "models") in message
    assert "\n" not in message
