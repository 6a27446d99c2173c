"""A worker of the benchmark that trains with this framework: see worker.py for what it is asked and answers."""

import dataclasses
import math
import tempfile
from pathlib import Path

import numpy as np
import worker

from cifar_research import config

PRODUCTS = 20  # of matrices, to see how fast the machine is
COPIES = 20  # of memory, likewise


def _weights(backbone, folder):
    """Return a file of random weights: their values do not change how long a step takes."""
    from cifar_research.models import conversion

    words = ["experiment=transfer", f"backbone={backbone}", "training=scratch", "backbone.weights=none"]
    path = Path(folder, "random.weights.h5")
    conversion.network_of(config.parse(words).backbone.build((32, 32, 3))).save_weights(path)
    return path


class Ours:
    """One preset at one batch size, precision and number of steps a call; its own augmentation and pipeline."""

    def __init__(self, options):
        overrides = [f"experiment={options.model}", f"training.batch_size={options.batch_size}"]
        if options.model in worker.UPPER:
            overrides[0] = "experiment=transfer"
            self.folder = tempfile.TemporaryDirectory()  # for as long as the worker
            weights = _weights(options.model, self.folder.name)
            overrides += [f"backbone={options.model}", "training=fine_tuning", f"backbone.weights={weights}"]
            overrides += [f"features.views={int(options.keep)}", f"data.cache_dir={self.folder.name}"]
        overrides += [f"training.precision={options.precision}", f"training.steps_per_call={options.steps_per_call}"]
        overrides += [f"training.jit_compile={str(options.compile).lower()}"]
        self.settings = config.parse([*overrides, "data.drop_remainder=true", *options.override])
        from cifar_research.data import batches
        from cifar_research.data.datasets import Dataset, Split
        from cifar_research.runtime import environment
        from cifar_research.training import shards

        images, labels = worker.images(options.images)
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:  # a memory map, as the data cache's images are
            np.save(file.name, images)
            images = np.load(file.name, mmap_mode="c")
        split = Split(images, labels, np.arange(len(images)))
        data = Dataset("random", tuple("abcdefghij"), split, split, split, "", None)
        self.environment = environment.prepare(
            self.settings.training, self.settings.seed, shards.count(self.settings, data)
        )
        if options.device:
            self.environment = dataclasses.replace(self.environment, prefetch_device=options.device)
        import tensorflow as tf

        from cifar_research.training import loop, setup, steps
        from cifar_research.training.scoring import Evaluation
        from cifar_research.training.state import Progress

        if options.from_host:
            batches.fits_on_device = lambda split: False
        self.tf = tf
        self.side = 8192 if self.environment.prefetch_device else 2048  # of the matrices whose products are timed
        self.state = setup.build(self.settings, data, self.environment.batch_shards)
        setup.load_weights(self.state, self.settings.backbone, data)
        data, forward = setup.enter(self.settings, self.state, data, Progress())
        split = data.train
        self.steps = len(images) // options.batch_size
        arguments = (self.state, self.environment, split, self.settings.training, 0, 1_000 * self.steps, True)
        self.call, source = loop.prepared(*arguments)
        self.iterator = iter(source)
        if self.environment.prefetch_device:
            batch = images[: options.batch_size], labels[: options.batch_size]
            self.held_call = self._held_call(steps, None if options.from_host else iter(source), *batch)
        self.scored = Split(split.images, split.labels, np.arange(len(images))[: worker.SCORED])
        self.evaluation = Evaluation(
            self.state,
            self.settings.training.eval_batch_size,
            forward,
            split.counts(len(data.classes)),
            self.environment.prefetch_device,
        )

    def train(self):
        return self._block(lambda number, totals: self.call(self.iterator, number, totals))

    def held(self):
        """Train on one batch that is held where the step is done: what is left is the pipeline's share."""
        return self._block(self.held_call)

    def _held_call(self, steps, iterator, images, labels):
        with self.tf.device(self.environment.prefetch_device):
            batch = self.tf.constant(images), self.tf.constant(labels)
        if self.environment.jit_compile and iterator is not None:
            program = steps.one_program(self.state, lambda rows: batch)
            return lambda number, totals: program(iterator, number, totals)

        @self.tf.function
        def call(number, totals):
            for _ in self.tf.range(number):
                totals += steps.train_step(self.state, *batch, jit_compile=self.environment.jit_compile)
            return totals

        return call

    def _block(self, call):
        totals, done = self.tf.zeros([3], self.tf.float64), 0
        while done < self.steps:
            number = min(self.settings.training.steps_per_call, self.steps - done)
            totals = call(self.tf.constant(number), totals)
            loss = float(totals[0])  # as the loop does, which looks at it after every call
            done += number
        return loss / float(totals[2])

    def evaluate(self):
        return self.evaluation(self.scored).values["loss"]

    def matrix(self):
        """Multiply matrices, as fast as this machine can at this precision; how many operations that is, facts tell."""
        tf = self.tf
        kind = tf.as_dtype(self.settings.training.precision)
        if not hasattr(self, "products"):
            self.products = tf.function(self._products)
            self.square = tf.cast(tf.random.normal([self.side] * 2, stddev=self.side**-0.5), kind)
        return float(self.products(self.square))

    def _products(self, square):
        """As many chains of products as the step has parts, since an operation then has one thread."""
        chains = [square * number for number in range(1, self.environment.batch_shards + 1)]
        for number in range(PRODUCTS):
            index = number % len(chains)
            chains[index] = self.tf.matmul(square, chains[index])
        return sum(product[0, 0] for product in chains)

    def copy(self):
        """Read and write memory, as fast as this machine can; `facts` has the number of bytes."""
        tf = self.tf
        if not hasattr(self, "copies"):

            def copies():
                added = tf.while_loop(
                    lambda number, values: number < COPIES,
                    lambda number, values: (number + 1, values + 1.0),
                    [0, tf.zeros([self._copied_bytes() // (8 * COPIES)])],  # float32, read and written
                )
                return added[1][0]

            self.copies = tf.function(copies, jit_compile=self.settings.training.jit_compile)
        return float(self.copies())

    def _copied_bytes(self):
        return COPIES * (2**31 if self.environment.prefetch_device else 2**26)

    def _step_bytes(self):
        """Return about how many bytes a step reads and writes.

        The output of each layer is written and read in the forward pass. In the backward pass it is read again, and its
        gradient is written and read. A weight, float32, is read in both passes; its gradient is written and read, and it
        and its slots are read and written.
        """
        import keras

        from cifar_research.models import classifier

        state, itemsize = self.state, self.tf.as_dtype(self.settings.training.precision).size
        outputs, shape = 0, (1, 32, 32, 3)
        for layer in classifier.leaves(state.model):
            if isinstance(layer, keras.layers.InputLayer):
                continue
            known = layer.output.shape[1:]
            # `fast` takes any size of images, and is a chain of layers.
            shape = layer.compute_output_shape(shape) if None in known else (1, *known)
            outputs += math.prod(shape[1:])
        of_weights = 4 * state.model.count_params() * (6 + 2 * len(state.optimizer.slots))
        return 5 * itemsize * outputs * self.settings.training.batch_size + of_weights

    def facts(self):
        from cifar_research.models import summary

        return {
            "parameters": self.state.model.count_params(),
            "forward_flops": sum(layer.flops for layer in summary.layers(self.state.model)),
            "matrix_flops": PRODUCTS * 2 * self.side**3,
            "step_bytes": self._step_bytes(),
            "copied_bytes": self._copied_bytes(),
        }


if __name__ == "__main__":
    worker.serve(Ours)
