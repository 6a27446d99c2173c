"""A step can run on a GPU, by TensorFlow's list of kernels; no GPU is needed."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import node_def_pb2
from tensorflow.python.framework import kernels, op_def_registry

from cifar_research import config
from cifar_research.data.datasets import Dataset, Split
from cifar_research.runtime import environment
from cifar_research.training import loop, setup
from cifar_research.training.state import Progress

UNKNOWN = 1_000  # the size of an unknown dimension, mostly the batch's
# Operations on axes, whose number is unknown, and operations that call others.
OF_SHAPES = ("BroadcastGradientArgs", "If", "StatelessIf", "Range")
SMALL = 512  # elements, more than a shape or a seed has


def graph_of_steps(*arguments):
    """Return the traced call of a run's steps on random images."""
    settings = config.parse([*arguments, "data.drop_remainder=true", "training.jit_compile=false"])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1024, 32, 32, 3), np.uint8), rng.integers(0, 10, 1024)
    split = Split(images, labels, np.arange(1024))
    data = Dataset("random", tuple("abcdefghij"), split, split, split, "", None)
    prepared = environment.prepare(settings.training, settings.seed)
    task = setup.build(settings, data)
    setup.load_weights(task, settings.backbone, data)
    setup.enter(settings, task, data, Progress())
    call, source = loop.prepared(task, prepared, split, settings.training, 0, 100, True)
    assert isinstance(call, tf.types.experimental.PolymorphicFunction)
    return call.get_concrete_function(iter(source), tf.constant(2), tf.zeros([3], tf.float64)).graph


def operations(graph, seen):
    """Yield the operations of a graph and of the graphs it calls, without those that XLA compiles."""
    yield from graph.get_operations()
    for name, function in graph._functions.items():
        attributes = function.cached_definition.attr
        if name not in seen and not ("_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b):
            seen.add(name)
            yield from operations(function.graph, seen)


@functools.cache
def kernels_of(op):
    return list(kernels.get_registered_kernels_for_op(op).kernel)


def kernel(node: node_def_pb2.NodeDef):
    """Return the kernel that a GPU would do this with, None if there is none."""
    for of in kernels_of(node.op):
        allowed = [(node.attr[c.name], c.allowed_values.list.type) for c in of.constraint]
        if of.device_type in ("GPU", "DEFAULT") and all((a.type or a.list.type[0]) in types for a, types in allowed):
            return of
    return None


def in_host_memory(operation, of):
    """Return the shapes of a kernel's inputs and outputs in host memory that are more than a shape or a seed."""
    definition = op_def_registry.get(operation.type)
    names = [argument.name for argument in (*definition.input_arg, *definition.output_arg)]
    tensors = [*operation.inputs, *operation.outputs]
    if len(names) != len(tensors):  # lists, as Pack has
        names = [names[0]] * len(operation.inputs) + [names[-1]] * len(operation.outputs)
    there = set(of.host_memory_arg) - {"reduction_indices"}
    shapes = [tensor.shape for name, tensor in zip(names, tensors, strict=True) if name in there]
    known = [shape.as_list() for shape in shapes if shape.rank]
    return [shape for shape in known if math.prod(UNKNOWN if size is None else size for size in shape) > SMALL]


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=first_version"],
        ["experiment=augmented", "training.precision=bfloat16"],
        ["experiment=fast"],
        ["experiment=wide", "augmentation=[strong,mixup]", "training.precision=float16"],
        [
            "experiment=wide",
            "augmentation=[crop_flip,zoom,colour,cutmix]",
            "backbone.activation=gelu",
            "optimizer=lion",
        ],
        ["model.pooling=avg", "training=scratch", "training.ema_decay=0.9"],
        ["experiment=wide", "training.batch_size=1"],
        [
            "backbone=efficientnet_lite0",
            "backbone.image_size=64",
            "backbone.interpolation=bicubic",
            "backbone.antialias=true",
            "backbone.weights=none",
            "training=scratch",
        ],
    ],
    ids=["first_version", "augmented", "fast", "float16", "lion", "averages", "one image", "resized"],
)
def test_every_operation_of_a_step_has_a_kernel_for_a_gpu_and_leaves_images_there(arguments):
    if not any(of.device_type == "GPU" for of in kernels_of("Conv2D")):
        pytest.skip("this TensorFlow was built without kernels for GPUs")
    everything = [(each, kernel(each.node_def)) for each in operations(graph_of_steps(*arguments), set())]
    assert len(everything) > 300
    assert not {operation.type for operation, of in everything if of is None}
    moved = {
        (operation.type, str(shapes))
        for operation, of in everything
        if operation.type not in OF_SHAPES and (shapes := in_host_memory(operation, of))
    }
    assert not moved


def test_an_operation_in_the_hosts_memory_is_found():
    @tf.function
    def graph(images):
        return tf.reduce_sum(tf.cast(images, tf.int32) + 1)

    result = graph.get_concrete_function(tf.TensorSpec([None, 32, 32, 3])).graph.get_operations()
    assert {o.type for o in result if (of := kernel(o.node_def)) and in_host_memory(o, of)} >= {"AddV2", "Sum"}
