"""A worker of the benchmark that trains with keras.fit, as its users write it; nothing of cifar_research is imported."""

import keras
import tensorflow as tf
import worker
from keras import layers


def study(preset):
    """Return one of the study's five models, as a user of Keras writes it."""
    normalised = preset not in ("first_version", "dropout")
    stack = [layers.Input((32, 32, 3))]
    if preset == "augmented":
        stack += [
            layers.RandomRotation(15 / 360, fill_mode="nearest"),
            layers.RandomFlip("horizontal_and_vertical"),
            layers.RandomTranslation(0.1, 0.1, fill_mode="nearest"),
        ]
    for filters in (32, 64, 128):
        for _ in range(2 if preset in ("enlarged", "augmented") else 1):
            stack.append(layers.Conv2D(filters, 3, padding="same"))
            stack += [layers.BatchNormalization()] if normalised else []
            stack.append(layers.Activation("relu"))
        stack.append(layers.MaxPooling2D())
    stack.append(layers.Flatten())
    for units in (512, 256) if normalised else (256,):
        stack.append(layers.Dense(units))
        stack += [layers.BatchNormalization()] if normalised else []
        stack.append(layers.Activation("relu"))
    stack += [layers.Dropout(0.3)] if preset != "first_version" else []
    # The softmax in float32, as Keras's guide to mixed precision says.
    return keras.Sequential([*stack, layers.Dense(10), layers.Activation("softmax", dtype="float32")])


def fast():
    """airbench94's network (Jordan 2024), with Keras's layers, flips and shifts."""
    stack = [
        layers.Input((32, 32, 3)),
        layers.RandomFlip("horizontal"),
        layers.RandomTranslation(1 / 16, 1 / 16, fill_mode="reflect"),
        layers.Conv2D(24, 2, trainable=False),
        layers.Activation(worker.FAST_ACTIVATION),
    ]
    for filters in (64, 256, 256):
        for pools in (True, False):
            stack.append(layers.Conv2D(filters, 3, padding="same", use_bias=False))
            stack += [layers.MaxPooling2D()] if pools else []
            stack.append(layers.BatchNormalization(momentum=0.6, scale=False))
            stack.append(layers.Activation(worker.FAST_ACTIVATION))
    stack += [layers.GlobalMaxPooling2D(), layers.Dense(10, use_bias=False), layers.Rescaling(1 / 9)]
    return keras.Sequential([*stack, layers.Activation("softmax", dtype="float32")])


def fine_tuned(name):
    """Return a network of keras.applications (or the same layers) whose upper blocks are trained, at 96 pixels."""
    if name == "efficientnet_lite0":  # of Keras's layers alone
        from cifar_research.models.backbones.efficientnet_lite import _network

        base = _network(96, 0.2)
    else:
        make = {"mobilenet_v2": keras.applications.MobileNetV2, "vgg16": keras.applications.VGG16}[name]
        base = make(include_top=False, weights=None, input_shape=(96, 96, 3))
    names = [layer.name for layer in base.layers]
    for layer in base.layers[: names.index(worker.UPPER[name])]:
        layer.trainable = False
    images = layers.Input((32, 32, 3))
    pixels = layers.Rescaling(2.0, offset=-1.0)(layers.Resizing(96, 96)(images))
    pooled = layers.GlobalAveragePooling2D()(base(pixels, training=False))
    return keras.Model(images, layers.Activation("softmax", dtype="float32")(layers.Dense(10)(pooled)))


def scaled(batches):
    """Return a pipeline of batches that scales their images to [0, 1] and makes their labels one-hot."""

    def scale(images, labels):
        return tf.cast(images, tf.float32) / 255, tf.one_hot(labels, 10)

    # Without tuning, whose thread was seen to hold an epoch's end up until it next wakes, at 1.28, 2.56 and 5.12 s: in
    # epochs as short as a block here, that would be up to half of Keras's time.
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    return batches.map(scale, num_parallel_calls=worker.cores()).prefetch(4).with_options(untuned)


class Keras:
    """A model, compiled, and its images as numpy arrays in [0, 1] or as a tf.data pipeline that scales them."""

    def __init__(self, options):
        keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[options.precision])
        keras.utils.set_random_seed(0)
        self.steps_per_call = options.steps_per_call
        is_fast, is_transfer = options.model == "fast", options.model in worker.UPPER
        self.model = fast() if is_fast else fine_tuned(options.model) if is_transfer else study(options.model)
        loss = "categorical_crossentropy" if is_transfer else "mean_squared_error"
        self.model.compile(
            keras.optimizers.SGD(0.01, momentum=0.85, nesterov=True) if is_fast else keras.optimizers.Adam(0.005),
            keras.losses.CategoricalCrossentropy(label_smoothing=0.2) if is_fast else loss,
            metrics=["accuracy"],
            steps_per_execution=options.steps_per_call,
        )
        images, labels = worker.images(options.images)
        if options.input == "tf.data":
            every = tf.data.Dataset.from_tensor_slices((images, labels))
            shuffled = every.shuffle(options.images).batch(options.batch_size, drop_remainder=True)
            self.training = {"x": scaled(shuffled)}
            self.scoring = {"x": scaled(every.take(worker.SCORED).batch(500))}
        else:
            pixels, targets = images.astype("float32") / 255, keras.utils.to_categorical(labels, 10)
            self.training = {"x": pixels, "y": targets, "batch_size": options.batch_size}
            self.scoring = {"x": pixels[: worker.SCORED], "y": targets[: worker.SCORED], "batch_size": 500}

    def train(self):
        return self.model.fit(**self.training, epochs=1, verbose=0).history["loss"][0]

    def evaluate(self):
        return self.model.evaluate(**self.scoring, verbose=0)[0]

    def sweep(self):
        """Train eight models, one learning rate each, for two epochs: what a sweep is without a framework."""
        for number in range(8):
            keras.backend.clear_session()
            model = study("wide")
            optimizer = keras.optimizers.Adam(0.001 * (number + 1))
            model.compile(
                optimizer, "mean_squared_error", metrics=["accuracy"], steps_per_execution=self.steps_per_call
            )
            model.fit(**self.training, epochs=2, verbose=0)
            loss = model.evaluate(**self.scoring, verbose=0)[0]
        return loss

    def facts(self):
        return {"parameters": self.model.count_params()}


if __name__ == "__main__":
    worker.serve(Keras)
