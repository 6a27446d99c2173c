"""The fused layers equal Keras's: forward, backward, moving statistics."""

import contextlib
import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar_research.models import layers
from cifar_research.models.layers import convolution, depthwise, normalization
from cifar_research.models.layers.tensorflow_ops import record_gradient


@pytest.mark.parametrize("shape", [(16, 6, 6, 8), (16, 24)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_equals_keras(shape, training):
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(3, 2, shape).astype("float32"))
    upstream = tf.constant(rng.normal(size=shape).astype("float32"))
    ours, theirs = layers.BatchNormalization(), keras.layers.BatchNormalization()
    values = [rng.uniform(0.5, 1.5, shape[-1]).astype("float32") for _ in range(4)]
    results = []
    for layer in (ours, theirs):
        layer.build(shape)
        layer.set_weights(values)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(outputs * upstream)
        gradients = tape.gradient(loss, [inputs, layer.gamma.value, layer.beta.value])
        results.append([outputs, *gradients, layer.moving_mean.value, layer.moving_variance.value])
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_normalisation_without_the_fused_gradient_equals_the_fused_one(monkeypatch):
    inputs, layer = tf.random.stateless_normal([8, 4, 4, 3], [1, 2], 3, 2), layers.BatchNormalization()
    layer.build(inputs.shape)
    layer.set_weights([np.random.default_rng(n).uniform(0.5, 2, 3) for n in range(4)])

    @tf.function(autograph=False)
    def gradient(is_fused):  # a Python value: traced for each
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=False)
        return outputs, tape.gradient(outputs, inputs)

    fused = gradient(True)
    monkeypatch.setattr(normalization, "has_frozen_norm_gradient", lambda: False)
    for got, expected in zip(gradient(False), fused, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    kinds = [{o.type for o in gradient.get_concrete_function(fuse).graph.get_operations()} for fuse in (True, False)]
    assert ["FusedBatchNormGradV3" in kind for kind in kinds] == [True, False]


def test_batch_normalization_moves_in_training_only():
    layer = layers.BatchNormalization()
    inputs = tf.random.stateless_normal([32, 4], [1, 2])
    layer(inputs, training=False)
    assert layer.moving_mean.numpy().tolist() == [0] * 4
    layer(inputs, training=True)
    assert abs(layer.moving_mean.numpy()).min() > 0
    layer.trainable = False
    before = layer.moving_mean.numpy()
    layer(inputs, training=True)
    np.testing.assert_array_equal(layer.moving_mean.numpy(), before)


@pytest.mark.parametrize("how", ["eager", "in a function", "compiled"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(None, 6), (None, 1, 1, 6)])
def test_one_value_a_channel_is_normalised_by_the_moving_statistics(shape, kind, how, like_cudnn):
    layer = layers.BatchNormalization(dtype=kind if kind == "float32" else f"mixed_{kind}")
    layer.build(shape)
    layer.set_weights([np.random.default_rng(n).uniform(0.5, 2, 6) for n in range(4)])

    def differentiate(inputs, training):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
        return outputs, *tape.gradient(outputs, [inputs, layer.gamma.value, layer.beta.value])

    signature = [tf.TensorSpec(shape, kind)]
    train = functools.partial(differentiate, training=True)
    train = train if how == "eager" else tf.function(train, signature, jit_compile=how == "compiled")
    inputs, before = tf.cast(tf.reshape(tf.range(6), [1, *shape[1:]]), kind), layer.get_weights()
    for got, expected in zip(train(inputs), differentiate(inputs, training=False), strict=True):
        np.testing.assert_allclose(tf.cast(got, tf.float32), tf.cast(expected, tf.float32), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.get_weights(), before)
    train(tf.concat([inputs, inputs + 1], 0))
    assert np.isfinite(layer.get_weights()).all() and (layer.moving_mean.numpy() != before[2]).all()


def test_a_batch_of_one_is_provided_for_only_where_it_may_come():
    def is_provided_for(shape, several_images):
        layer = layers.BatchNormalization()
        layer.build(shape)
        with layers.called_with(several_images=several_images):
            traced = tf.function(lambda inputs: layer(inputs, training=True))
            graph = traced.get_concrete_function(tf.TensorSpec(shape)).graph
        return "If" in {operation.type.removeprefix("Stateless") for operation in graph.get_operations()}

    assert is_provided_for([None, 4], False) and is_provided_for([None, None, 1, 4], False)
    assert not is_provided_for([None, 4], True)
    assert not is_provided_for([None, 2, 1, 4], False) and not is_provided_for([8, 4], False)


@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize("shape", [(64, 33), (8, 5, 7, 3)])
def test_dropout_equals_keras_given_its_mask(rate, shape):
    layer = layers.Dropout(rate, name="some_dropout")
    inputs = tf.constant(np.random.default_rng(0).uniform(1, 2, shape).astype("float32"))
    with layers.called_with(seed=tf.constant([1, 2])), tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    kept = outputs.numpy() != 0
    np.testing.assert_allclose(outputs, np.where(kept, inputs / (1 - rate), 0), rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(outputs, inputs), kept / (1 - rate), rtol=1e-5)
    np.testing.assert_array_equal(layer(inputs, training=False), inputs)


def test_dropout_keeps_the_share_it_should():
    with layers.called_with(seed=tf.constant([3, 4])):
        outputs = layers.Dropout(0.3, name="d")(tf.ones([1000, 1001]), training=True)
    assert abs((outputs.numpy() != 0).mean() - 0.7) < 4 * np.sqrt(0.21 / 1e6)
    assert abs(outputs.numpy().mean() - 1) < 0.005


def test_dropout_is_a_function_of_seed_and_name():
    inputs = tf.ones([4, 100])

    def masks(seed, name):
        with layers.called_with(seed=tf.constant(seed)):
            return layers.Dropout(0.5, name=name)(inputs, training=True).numpy()

    np.testing.assert_array_equal(masks([1, 2], "a"), masks([1, 2], "a"))
    assert (masks([1, 2], "a") != masks([1, 3], "a")).any()
    assert (masks([1, 2], "a") != masks([1, 2], "b")).any()
    rows = masks([1, 2], "a")
    assert (rows[0] != rows[1]).any()


def test_dropout_without_a_seed_is_an_error():
    with pytest.raises(ValueError, match="called_with"):
        layers.Dropout(0.5, name="lost")(tf.ones([2, 2]), training=True)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_without_scale_equals_keras(training):
    inputs = tf.random.stateless_normal([8, 5, 5, 4], [1, 2])
    ours, theirs = layers.BatchNormalization(scale=False), keras.layers.BatchNormalization(scale=False)
    np.testing.assert_allclose(ours(inputs, training=training), theirs(inputs, training=training), atol=1e-5)
    np.testing.assert_allclose(ours.moving_variance.value, theirs.moving_variance.value, rtol=1e-5)


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "elu", "tanh", "leaky_relu"])
@pytest.mark.parametrize("is_portable", [False, True])
def test_activation_equals_keras(name, is_portable):
    inputs = tf.random.stateless_normal([16, 5, 5, 3], [1, 2])
    upstream = tf.random.stateless_normal([16, 5, 5, 3], [3, 4])
    results = []
    for layer in (layers.Activation(name), keras.layers.Activation(name)):
        with tf.GradientTape() as tape, layers.called_with(portable=True) if is_portable else contextlib.nullcontext():
            tape.watch(inputs)
            outputs = layer(inputs)
        results.append((outputs, tape.gradient(outputs, inputs, upstream)))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["eager", "in a function", "around a function"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_relu_and_max_pooling_equal_keras(kind, where):
    inputs = tf.cast(tf.random.stateless_normal([16, 7, 8, 3], [1, 2]), kind)
    inputs = tf.concat([inputs, -tf.abs(inputs), tf.round(inputs)], 0)  # windows of nothing but negatives, and of ties
    upstream = tf.cast(tf.random.stateless_normal([48, 3, 4, 3], [3, 4]), kind)
    relu, pool = keras.layers.ReLU(dtype=kind), keras.layers.MaxPooling2D(2, dtype=kind)

    def differentiate(network):
        network = tf.function(network) if where == "around a function" else network
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = network(inputs)
        return outputs, tape.gradient(outputs, inputs, upstream)

    differentiate = tf.function(differentiate) if where == "in a function" else differentiate
    results = [differentiate(network) for network in (layers.ReluMaxPooling2D(2, dtype=kind), lambda x: pool(relu(x)))]
    for got, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["relu and pooling", "gelu", "convolution"])
def test_layers_hold_no_graph_that_calls_them(name, monkeypatch):
    monkeypatch.setattr(convolution, "_is_narrow", lambda *_: True)
    layer = {
        "relu and pooling": layers.ReluMaxPooling2D(2),
        "gelu": layers.Activation("gelu"),
        "convolution": layers.Conv2D(2, 3, padding="same"),
    }[name]
    layer.build([4, 32, 32, 3])

    def differentiate(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images)
        return tape.gradient(outputs, images)

    graph = weakref.ref(tf.function(differentiate).get_concrete_function(tf.TensorSpec([4, 32, 32, 3])).graph)
    gc.collect()
    assert graph() is None


def test_gradients_of_our_own_are_those_taken(monkeypatch):
    monkeypatch.setattr(convolution, "_is_narrow", lambda *_: True)
    layer, pool = layers.Conv2D(3, 3, padding="same"), layers.ReluMaxPooling2D(2)
    layer.build([4, 6, 6, 3])

    def differentiate(images):
        with tf.GradientTape() as tape:
            outputs = pool(layer(images))
        return tape.gradient(outputs, layer.kernel.value)

    operations = tf.function(differentiate).get_concrete_function(tf.TensorSpec([4, 6, 6, 3])).graph.get_operations()
    [of_filters] = [op for op in operations if op.type == "Conv2DBackpropFilter"]
    assert of_filters.inputs[0].op.type == "Reshape"
    assert [op.outputs[0].shape for op in operations if op.type == "ReluGrad"] == [[4, 3, 3, 3]]


def test_portable_holds_no_compiled_function():
    layer, inputs = layers.Activation("gelu"), tf.TensorSpec([None, 4])
    with layers.called_with(portable=True):
        plain = tf.function(lambda x: layer(x)).get_concrete_function(inputs)
    compiled = tf.function(lambda x: layer(x)).get_concrete_function(inputs)
    assert not [op for op in plain.graph.get_operations() if "PartitionedCall" in op.type]
    assert [op for op in compiled.graph.get_operations() if "PartitionedCall" in op.type]


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 3), (3, 5), (2, 4)])
@pytest.mark.parametrize("height", [1, 3, 7])
@pytest.mark.parametrize("batch", [3, 32])
def test_filter_gradient_side_by_side_equals_the_library(size, height, batch):
    images = tf.random.stateless_normal([batch, height, 6, 5], [1, 2])
    upstream = tf.random.stateless_normal([batch, height, 6, 8], [3, 4])
    kernel = tf.random.stateless_normal([*size, 5, 8], [5, 6])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        outputs = tf.nn.conv2d(images, kernel, 1, "SAME")
    expected = tape.gradient(outputs, kernel, upstream)
    of_kernel, of_bias = convolution.filter_gradient(images, upstream, size)
    np.testing.assert_allclose(of_kernel, expected, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(of_bias, tf.reduce_sum(upstream, [0, 1, 2]), rtol=1e-4, atol=1e-4)


def test_convolution_side_by_side_equals_keras(monkeypatch):
    monkeypatch.setattr(convolution, "_is_narrow", lambda *_: True)
    images = tf.random.stateless_normal([16, 7, 7, 6], [1, 2])
    results = []
    for make in (layers.Conv2D, keras.layers.Conv2D):
        layer = make(8, 3, padding="same")
        layer.build(images.shape)
        layer.set_weights([tf.random.stateless_normal([3, 3, 6, 8], [3, 4]), np.ones(8, "float32")])
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images)
            loss = tf.reduce_sum(outputs**2)
        results.append([outputs, *tape.gradient(loss, [images, layer.kernel.value, layer.bias.value])])
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_depthwise_convolutions_take_maps_of_open_size():
    layer = layers.DepthwiseConv2D(3, padding="same", use_bias=False)
    layer.build((None, None, None, 2))
    call = tf.function(layer, [tf.TensorSpec([None, None, None, 2])])
    assert call(tf.ones([1, 2, 5, 2])).shape == (1, 2, 5, 2)


@pytest.mark.parametrize("height", [1, 3, 4])
def test_depthwise_gradients_on_small_maps_equal_keras(height, monkeypatch):
    recorded = []

    def record(name, *rest):
        recorded.append(name)
        record_gradient(name, *rest)

    monkeypatch.setattr(depthwise, "record_gradient", record)
    monkeypatch.setattr(depthwise, "has_onednn", lambda feature: True)
    images = tf.random.stateless_normal([4, height, 3, 6], [1, 2])
    kernel = tf.random.stateless_normal([5, 5, 6, 2], [3, 4])
    results = []
    for make in (layers.DepthwiseConv2D, keras.layers.DepthwiseConv2D):
        layer = make(5, padding="same", depth_multiplier=2, use_bias=False)
        layer.build(images.shape)
        layer.set_weights([kernel])
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images)
            loss = tf.reduce_sum(outputs**2)
        results.append([outputs, *tape.gradient(loss, [images, layer.kernel.value])])
    assert recorded == ["DepthwiseOnSmallMaps"]
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["dense", "dense on maps", "convolution", "convolution, no oneDNN", "strided, no oneDNN"]
)
def test_gradients_of_biases_are_added_up_in_float32(kind, monkeypatch):
    if "no oneDNN" in kind:
        monkeypatch.setattr(convolution, "has_onednn", lambda feature: False)
    shape = [2048, 16] if kind == "dense" else [64, 128, 16] if kind == "dense on maps" else [64, 16, 16, 3]
    strides = 2 if "strided" in kind else 1
    is_dense = kind.startswith("dense")
    initializer = keras.initializers.GlorotUniform(seed=1)
    options = {"activation": "relu", "dtype": "mixed_bfloat16", "kernel_initializer": initializer}
    layer = layers.Dense(8, **options) if is_dense else layers.Conv2D(8, 3, padding="same", strides=strides, **options)
    layer.build(shape)
    inputs = tf.cast(tf.random.stateless_uniform(shape, [1, 2]), tf.bfloat16)
    upstream = tf.cast(tf.random.stateless_uniform(layer.compute_output_shape(shape), [3, 4]), tf.bfloat16)

    @tf.function
    def differentiate():
        with tf.GradientTape() as tape:
            outputs = layer(inputs)
        return outputs, *tape.gradient(outputs, [layer.kernel.value, layer.bias.value], upstream)

    outputs, of_kernel, of_bias = differentiate()
    passed = np.where(np.asarray(outputs, "float64") > 0, np.asarray(upstream, "float64"), 0)
    np.testing.assert_allclose(of_bias, passed.reshape(-1, 8).sum(0), rtol=5e-3)
    assert of_bias.dtype == tf.float32 and np.abs(of_kernel).max() > 0
    layer.activation, layer.dtype_policy = keras.activations.relu, keras.DTypePolicy("float32")
    np.testing.assert_allclose(np.asarray(outputs, "float32"), layer(tf.cast(inputs, tf.float32)), atol=0.02)
