"""One step: equal to Keras's, traced once, able to memorise, equal to a golden file."""

import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar_research import config
from cifar_research.config.contracts import Backbone
from cifar_research.data import batches as pipelines
from cifar_research.data.datasets import Split
from cifar_research.models import classifier, heads, layers
from cifar_research.models.backbones.cnn import cnn
from cifar_research.optimization import optimizers
from cifar_research.training import loop, steps
from cifar_research.training.forward import Preprocessing
from cifar_research.training.state import Progress, TrainState

GOLDEN = Path(__file__).parent / "golden" / "losses.json"


def images_and_labels(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    # Classes differ in brightness and colour, so the model can learn.
    images = rng.integers(0, 128, (count, 16, 16, 3)) + labels[:, None, None, None] * np.array([12, 6, 1])
    return images.astype(np.uint8), labels.astype(np.int64)


def make_task(batch_norm=False, dropout=0.0, loss="mean_squared_error", optimizer=None, augment=None, **changes):
    keras.utils.set_random_seed(1)
    backbone = cnn(filters=[8, 16], batch_norm=batch_norm)
    head = heads.head(hidden=[32], batch_norm=batch_norm, dropout=dropout)
    optimizer = optimizer or optimizers.adam(learning_rate=0.005)
    loss = config.parse([f"loss={loss}"]).loss.function
    settings = {
        "model": classifier.classifier(backbone, head, (16, 16, 3), 10),
        "loss": loss,
        "scoring_loss": loss,
        "optimizer": optimizer,
        "preprocessing": Preprocessing(10, augment or (lambda images, targets, seed, epoch_seed: (images, targets))),
        "seed": 0,
    }
    return TrainState(**(settings | changes))


def losses_of(task, batches, steps_per_call=1):
    """Train on the batches and return the mean loss of each call."""
    call = steps.many_steps(task, tf.distribute.get_strategy())

    def generate():
        yield from batches

    shape = (tf.TensorSpec([None, *task.model.input_shape[1:]], tf.uint8), tf.TensorSpec([None], tf.int64))
    iterator = iter(tf.data.Dataset.from_generator(generate, output_signature=shape))
    losses = []
    for _ in range(len(batches) // steps_per_call):
        totals = call(iterator, tf.constant(steps_per_call), tf.zeros([3], tf.float64)).numpy()
        losses.append(totals[0] / totals[2])
    return losses


def some_batches(count, size=32):
    return [images_and_labels(size, seed) for seed in range(count)]


def swap_layers(ours):
    """Return a copy of a model on Keras's own layers, with the same weights."""
    stack = [keras.Input(ours.input_shape[1:])]
    for layer in (layer for part in classifier.parts(ours) for layer in part.layers):
        if isinstance(layer, layers.BatchNormalization):
            stack.append(keras.layers.BatchNormalization())
        elif not isinstance(layer, keras.layers.InputLayer):
            stack.append(layer.__class__.from_config(layer.get_config()))
    theirs = keras.Sequential(stack)
    theirs.set_weights(ours.get_weights())
    return theirs


# Adam's rate is small on purpose: a convolution's bias before batch normalisation has no gradient but rounding
# errors, Adam makes whole steps of them, and at 0.001 they reach the losses' fourth digit in twenty steps. SGD's is,
# because at 0.01 some processors' rounding tips a maximum over in the eighteenth.
OPTIMIZERS = {
    "adam": (optimizers.adam(learning_rate=0.0001), lambda: keras.optimizers.Adam(0.0001)),
    "sgd": (
        optimizers.sgd(learning_rate=0.003, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.SGD(0.003, momentum=0.9, nesterov=True),
    ),
    "rmsprop": (optimizers.rmsprop(learning_rate=0.001), lambda: keras.optimizers.RMSprop(0.001)),
}


# Each two of the three settings, in all their combinations.
@pytest.mark.parametrize(
    ("loss", "batch_norm", "optimizer"),
    [
        ("mean_squared_error", False, "adam"),
        ("categorical_crossentropy", True, "adam"),
        ("mean_squared_error", True, "sgd"),
        ("categorical_crossentropy", False, "sgd"),
        ("mean_squared_error", False, "rmsprop"),
        ("categorical_crossentropy", True, "rmsprop"),
    ],
)
def test_twenty_steps_equal_train_on_batch(loss, batch_norm, optimizer):
    ours, make_theirs = OPTIMIZERS[optimizer]
    task = make_task(batch_norm, loss=loss, optimizer=ours)
    peer = swap_layers(task.model)
    output = keras.Sequential([peer, keras.layers.Softmax()])
    output.compile(make_theirs(), loss, jit_compile=False)
    batches = some_batches(20)
    expected = []
    for images, labels in batches:
        output.reset_metrics()
        expected.append(float(output.train_on_batch(images.astype("float32") / 255, np.eye(10)[labels])))

    swapped = make_task(batch_norm, loss=loss, optimizer=ours, model=swap_layers(task.model))
    np.testing.assert_allclose(losses_of(swapped, batches), expected, rtol=1e-6)
    # The gradient of a bias before a normalisation is only rounding errors, and some optimizers make whole steps of them.
    np.testing.assert_allclose(losses_of(task, batches), expected, rtol=1e-2 if batch_norm else 1e-4)


def test_one_trace_whatever_the_batch_and_the_call():
    traces = []

    def augment(images, targets, seed, epoch_seed):
        traces.append(images.shape)
        return images, targets

    batches = [*some_batches(4), images_and_labels(5), images_and_labels(1)]
    task = make_task(batch_norm=True, dropout=0.3, augment=augment)
    call = steps.many_steps(task, tf.distribute.get_strategy())
    spec = (tf.TensorSpec([None, 16, 16, 3], tf.uint8), tf.TensorSpec([None], tf.int64))
    iterator = iter(tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec))
    for num_steps in (1, 3, 1, 1):
        call(iterator, tf.constant(num_steps), tf.zeros([3], tf.float64))
    assert len(traces) == 1
    assert task.step.numpy() == 6


def test_a_program_of_a_hundred_steps_of_two_thousand_images_is_traced_once_whatever_the_count():
    traces = []

    def augment(images, targets, seed, epoch_seed):
        traces.append(images.shape)
        return images, targets

    model = classifier.classifier(cnn(filters=[2], pooling="avg"), heads.head(hidden=[]), (4, 4, 3), 10)
    task = make_task(model=model, augment=augment, loss="categorical_crossentropy")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 4000)
    split = Split((labels[:, None, None, None] * 25 * np.ones((4, 4, 3))).astype(np.uint8), labels, np.arange(4000))
    call = steps.one_program(task, pipelines.reader_on_device(split, "/CPU:0"))
    rows = rng.integers(0, 4000, (100, 2000))
    counts = tf.data.Dataset.from_tensor_slices([100, 3])
    iterator = iter(counts.map(lambda count: (tf.constant(rows), count)))
    losses, images = zip(
        *[call(iterator, tf.constant(n), tf.zeros([3], tf.float64)).numpy()[[0, 2]] for n in (100, 3)], strict=True
    )
    assert images == (200_000, 6_000) and losses[1] / 6_000 < losses[0] / 200_000
    assert task.step.numpy() == 103 and len(traces) == 1


def test_steps_per_call_changes_nothing():
    batches = some_batches(6)
    single = losses_of(make_task(dropout=0.3), batches)
    triple = losses_of(make_task(dropout=0.3), batches, steps_per_call=3)
    np.testing.assert_allclose(triple, [np.mean(single[:3]), np.mean(single[3:])], rtol=1e-6)


def test_sixty_four_images_can_be_memorised():
    batch = images_and_labels(64)
    task = make_task(batch_norm=True, loss="categorical_crossentropy", optimizer=optimizers.adam(learning_rate=0.001))
    # As many as the moving statistics need to follow, at their momentum of 0.99.
    call = steps.many_steps(task, tf.distribute.get_strategy())
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat(600))
    for _ in range(6):
        call(iterator, tf.constant(100), tf.zeros([3], tf.float64))
    assert losses_of(task, [batch])[0] < 0.05
    _, predictions, _ = steps.eval_step(task, *batch, task.forward)
    assert (predictions.numpy() == batch[1]).mean() > 0.95


def test_debiased_statistics_start_with_the_phase():
    statistics = []
    for first in (0, 1_000):
        task = make_task(batch_norm=True, debiases_norms=True, optimizer=optimizers.sgd(learning_rate=0.01))
        task.step.assign(first)
        task.first_step = first
        losses_of(task, some_batches(2))
        norms = [layer for layer in classifier.leaves(task.model) if isinstance(layer, layers.BatchNormalization)]
        statistics.append([weight.numpy() for norm in norms for weight in norm.non_trainable_weights])
    for at_start, later in zip(*statistics, strict=True):
        np.testing.assert_allclose(later, at_start, rtol=1e-5)


def test_golden_losses():
    """The first 20 losses are unchanged; a commit that must change them says why."""
    # By SGD at a small rate: a rounding, which differs from processor to processor, must not grow in twenty steps.
    task = make_task(batch_norm=True, dropout=0.3, optimizer=optimizers.sgd(learning_rate=0.003))
    losses = losses_of(task, some_batches(20))
    if not GOLDEN.exists():  # delete the file and run pytest tests/test_steps.py to rewrite it
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
        pytest.fail(f"wrote {GOLDEN}; look at it and commit it")
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text()), rtol=1e-4)


def test_loss_is_a_mean_over_images_and_partial_batches_count_by_size():
    task = make_task(optimizer=optimizers.sgd(learning_rate=1e-12))
    images, labels = images_and_labels(48)
    whole = losses_of(task, [(images, labels)])[0]
    call = steps.many_steps(task, tf.distribute.get_strategy())
    parts = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    spec = (tf.TensorSpec([None, 16, 16, 3], tf.uint8), tf.TensorSpec([None], tf.int64))
    iterator = iter(tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=spec))
    totals = call(iterator, tf.constant(2), tf.zeros([3], tf.float64)).numpy()
    assert totals[2] == 48
    assert totals[0] / totals[2] == pytest.approx(whole, rel=1e-6)


def test_bfloat16_and_float16_keep_float32_weights_and_learn():
    batch = images_and_labels(64)
    for precision, policy in (("bfloat16", "mixed_bfloat16"), ("float16", "mixed_float16")):
        keras.config.set_dtype_policy(policy)
        try:
            task = make_task(batch_norm=True, loss="categorical_crossentropy", precision=precision)
        finally:
            keras.config.set_dtype_policy("float32")
        assert {weight.dtype for weight in task.weights} == {tf.float32}
        losses = losses_of(task, [batch] * 20)
        assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]


def test_float16_overflow_skips_the_update_and_halves_the_scale():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        task = make_task(loss="categorical_crossentropy", precision="float16")
    finally:
        keras.config.set_dtype_policy("float32")
    task.loss_scale.assign(1e30)
    before = [weight.numpy() for weight in task.weights]
    losses_of(task, [images_and_labels(8)])
    assert task.loss_scale.numpy() == pytest.approx(5e29) and task.overflows.numpy() == 1
    losses_of(task, [images_and_labels(8)] * 2)
    messages, progress = [], Progress(overflows=1)
    for _ in range(2):
        loop._report_overflows(task, progress, SimpleNamespace(display=SimpleNamespace(message=messages.append)))
    assert len(messages) == 1 and messages[0].startswith("float16: 2 steps overflowed and changed no weight")
    for weight, value in zip(task.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_count_among_the_weights_is_not_averaged():
    def counting(image_shape):
        rest = cnn(filters=[8]).build(image_shape)
        return keras.Sequential([keras.layers.Normalization(name="normalization"), rest])

    model = classifier.classifier(Backbone(counting), heads.head(hidden=[8]), (16, 16, 3), 10)
    task = make_task(ema_decay=0.5, model=model)
    (path,) = (i for i, weight in enumerate(task.model.weights) if not weight.value.dtype.is_floating)
    task.model.weights[path].assign(7)
    losses_of(task, some_batches(1))
    assert task.averages[path].numpy() == 7


def test_averages_follow_the_weights():
    task = make_task(ema_decay=0.5, batch_norm=True)
    assert len(task.averages) == len(task.model.weights)
    expected = task.model.weights[0].numpy()
    for number, batch in enumerate(some_batches(5)):
        losses_of(task, [batch])
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * task.model.weights[0].numpy()
    np.testing.assert_allclose(task.averages[0].numpy(), expected, rtol=1e-5)
