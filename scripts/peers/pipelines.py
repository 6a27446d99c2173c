"""A worker of the benchmark for augmentation alone: the study's `slides`, in three pipelines over the same images."""

import keras
import tensorflow as tf
import worker

from cifar_research import augmentation, config


class Pipelines:
    """Each yields float32 batches of augmented images, by tf.data; ours is the same function that a step calls."""

    def __init__(self, options):
        images, labels = worker.images(options.images)
        targets = keras.utils.to_categorical(labels, 10)
        self.size = options.batch_size
        self.source = tf.data.Dataset.from_tensor_slices((images, targets))
        self.slides = augmentation.compose(config.parse(["augmentation=slides"]).transforms)
        self.held = [tf.constant(array[: self.size]) for array in (images, targets)]
        self.layers = keras.Sequential(
            [
                keras.layers.RandomRotation(15 / 360, fill_mode="nearest"),
                keras.layers.RandomFlip("horizontal_and_vertical"),
                keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest"),
            ]
        )
        self.layers(tf.zeros([self.size, 32, 32, 3]))

        @tf.function
        def many(count):
            total = 0.0
            for step in tf.range(count):
                pixels, _ = self.slides(tf.cast(self.held[0], tf.float32) / 255, self.held[1], tf.stack([0, step]))
                total += pixels[0, 0, 0, 0]
            return total

        self.many = many

    def step(self):
        """Augment as many batches inside one traced call, from images held in memory: what it costs in a step."""
        return float(self.many(tf.constant(len(self.source) // self.size)))

    def ours(self):
        def batch(index, pair):
            return self.slides(tf.cast(pair[0], tf.float32) / 255, pair[1], tf.stack([0, tf.cast(index, tf.int32)]))

        return self.consume(self.source.batch(self.size, drop_remainder=True).enumerate().map(batch, 2))

    def keras(self):
        def batch(images, targets):
            return self.layers(tf.cast(images, tf.float32) / 255, training=True), targets

        return self.consume(self.source.batch(self.size, drop_remainder=True).map(batch, 2))

    def tf_image(self):
        """An image at a time; without the rotation, which tf.image has not."""

        def one(image, target):
            image = tf.image.random_flip_up_down(tf.image.random_flip_left_right(image))
            image = tf.pad(image, [[3, 3], [3, 3], [0, 0]], "SYMMETRIC")
            return tf.cast(tf.image.random_crop(image, [32, 32, 3]), tf.float32) / 255, target

        return self.consume(self.source.map(one, 2).batch(self.size, drop_remainder=True))

    def consume(self, dataset):
        total = 0.0
        for images, _ in dataset.prefetch(2):
            total += images[0, 0, 0, 0]
        return float(total)

    def facts(self):
        return {}


if __name__ == "__main__":
    worker.serve(Pipelines)
