"""Export formats: how each is written, and reloaded for verification."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_research.runtime import environment

if TYPE_CHECKING:
    import onnx
    import tensorflow as tf

    from cifar_research.inference.trained import Classifier

METADATA = "cifar_research"  # the entry of a LiteRT file that holds the metadata, as JSON
_OPSET = 17  # of ONNX; runtimes since 2022 know it
# Images uint8 [N, H, W, C] -> probabilities float32 [N, K].
Model = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Format:
    """One format: names of its file or folder, the extra packages it needs, and how it is written and reloaded.

    quantized_name: None if the format cannot be quantized.
    write: (module, metadata, path, calibration images or None) -> nothing; reload: path -> Model.
    """

    name: str
    quantized_name: str | None
    packages: tuple[str, ...]
    write: Callable[[tf.Module, Mapping[str, Any], Path, np.ndarray | None], None]
    reload: Callable[[Path], Model]


def module(classifier: Classifier) -> tf.Module:
    """Return the module to export: `serve`, uint8 images [N, H, W, C] to `probabilities` float32 [N, K].

    Preprocessing and temperature are in it, and the batch size is open.
    """
    import tensorflow as tf

    from cifar_research.models import layers

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        with layers.portable():
            logits = classifier.forward(images)
        return {"probabilities": tf.nn.softmax(logits / classifier.temperature, name="softmax")}

    exported = tf.Module()
    exported.weights = [variable.value for variable in classifier.model.variables]
    exported.serve = tf.function(serve, [tf.TensorSpec([None, *classifier.image_shape], tf.uint8, "images")])
    return exported


def _write_saved_model(
    exported: tf.Module, metadata: Mapping[str, Any], path: Path, calibration: np.ndarray | None
) -> None:
    import tensorflow as tf

    classes = tf.constant(metadata["classes"])
    exported.names = tf.function(lambda: {"classes": tf.identity(classes)}, [])
    with _silence():
        tf.saved_model.save(exported, path, {"serving_default": exported.serve, "classes": exported.names})
    extra = path / "assets.extra"  # TensorFlow's folder for files that a user adds
    extra.mkdir()
    (extra / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def _reload_saved_model(path: Path) -> Model:
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: serve(images=tf.constant(images))["probabilities"].numpy()


def _write_litert(exported: tf.Module, metadata: Mapping[str, Any], path: Path, calibration: np.ndarray | None) -> None:
    import flatbuffers
    import tensorflow as tf
    from ai_edge_litert import schema_py_generated as schema

    concrete = exported.serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], exported)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    with _silence():
        content = converter.convert()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def _reload_litert(path: Path) -> Model:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=os.cpu_count()).get_signature_runner()

    def model(images: np.ndarray) -> np.ndarray:
        with _silence():
            return runner(images=images)["probabilities"]

    return model


def _write_onnx(exported: tf.Module, metadata: Mapping[str, Any], path: Path, calibration: np.ndarray | None) -> None:
    import onnx
    import tf2onnx

    signature = exported.serve.input_signature
    with _silence():
        model, _ = tf2onnx.convert.from_function(exported.serve, input_signature=signature, opset=_OPSET)
        if calibration is not None:
            model = _quantized_onnx(model, path, calibration)
    properties = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)


def _quantized_onnx(model: onnx.ModelProto, path: Path, calibration: np.ndarray) -> onnx.ModelProto:
    """Return the model with weights and activations of 8 bits; path: a file that may be written meanwhile."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        batches = iter(np.array_split(calibration, -(-len(calibration) // 50)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    onnx.save(model, path)
    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantization.quantize_static(path, path, Images(), per_channel=True)
    return onnx.load(path)


def _reload_onnx(path: Path) -> Model:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep converters' messages off the terminal; their errors come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with environment.quiet():
            yield
    finally:
        logging.disable(before)


FORMATS = {
    "saved_model": Format("saved_model", None, (), _write_saved_model, _reload_saved_model),
    "litert": Format("model.tflite", "model.int8.tflite", ("ai_edge_litert",), _write_litert, _reload_litert),
    "onnx": Format("model.onnx", "model.int8.onnx", ("onnx", "tf2onnx", "onnxruntime"), _write_onnx, _reload_onnx),
}
