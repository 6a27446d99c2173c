"""Export formats: how each is written, and reloaded for verification."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_research.runtime import environment
from cifar_research.runtime.lazy import tf

if TYPE_CHECKING:
    import onnx

    from cifar_research.inference.trained import Classifier

_OPSET = 17  # of ONNX; supported by runtimes since 2022
# Images uint8 [N, H, W, C] -> probabilities float32 [N, K].
Model = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Format:
    """A format; names: of its file or folder, None if not quantizable; packages: requirements.

    write: (a module with `serve`, metadata, images uint8 [N, H, W, C] to calibrate with or None, path).
    """

    name: str
    quantized_name: str | None
    packages: tuple[str, ...]
    write: Callable[[tf.Module, dict[str, Any], np.ndarray | None, Path], None]
    reload: Callable[[Path], Model]


def module(classifier: Classifier) -> tf.Module:
    """Return a module with `serve`: images uint8 [N, H, W, C] -> probabilities float32 [N, K].

    It includes preprocessing and temperature; the batch size is open.
    """
    from cifar_research.models import layers

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        with layers.called_with(portable=True):
            logits = classifier.forward(images)
        return {"probabilities": tf.nn.softmax(logits / classifier.temperature, name="softmax")}

    exported = tf.Module()
    exported.weights = [variable.value for variable in classifier.model.variables]
    exported.serve = tf.function(
        serve, [tf.TensorSpec([None, *classifier.image_shape], tf.uint8, "images")], autograph=False
    )
    return exported


def _write_saved_model(module: tf.Module, metadata: dict[str, Any], calibration: np.ndarray | None, path: Path) -> None:
    classes = tf.constant(metadata["classes"])
    module.names = tf.function(lambda: {"classes": tf.identity(classes)}, [], autograph=False)
    with environment.quiet():
        tf.saved_model.save(module, path, {"serving_default": module.serve, "classes": module.names})
    extra = path / "assets.extra"  # TensorFlow's folder for extra files
    extra.mkdir()
    (extra / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def _reload_saved_model(path: Path) -> Model:
    serve = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: serve(images=tf.constant(images))["probabilities"].numpy()


def _write_litert(module: tf.Module, metadata: dict[str, Any], calibration: np.ndarray | None, path: Path) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
    with environment.quiet():
        content = converter.convert()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    entry.name, entry.buffer = "cifar_research", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def _reload_litert(path: Path) -> Model:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=os.cpu_count()).get_signature_runner()

    def model(images: np.ndarray) -> np.ndarray:
        with environment.quiet():
            return runner(images=images)["probabilities"]

    return model


def _write_onnx(module: tf.Module, metadata: dict[str, Any], calibration: np.ndarray | None, path: Path) -> None:
    import onnx
    import tf2onnx

    serve = module.serve
    with environment.quiet():
        model, _ = tf2onnx.convert.from_function(serve, input_signature=serve.input_signature, opset=_OPSET)
        if calibration is not None:
            model = _quantized_onnx(model, path, calibration)
    properties = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)


def _quantized_onnx(model: onnx.ModelProto, path: Path, calibration: np.ndarray) -> onnx.ModelProto:
    """Return the model with 8-bit weights and activations; path: for temporary files."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        batches = ({"images": batch} for batch in np.array_split(calibration, -(-len(calibration) // 50)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    onnx.save(model, path)
    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantization.quantize_static(path, path, Images(), per_channel=True)
    return onnx.load(path)


def _reload_onnx(path: Path) -> Model:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


FORMATS = {
    "saved_model": Format("saved_model", None, (), _write_saved_model, _reload_saved_model),
    "litert": Format("model.tflite", "model.int8.tflite", ("ai_edge_litert",), _write_litert, _reload_litert),
    "onnx": Format("model.onnx", "model.int8.onnx", ("onnx", "tf2onnx", "onnxruntime"), _write_onnx, _reload_onnx),
}
