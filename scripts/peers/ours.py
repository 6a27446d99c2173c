"""A worker of the benchmark that trains with this framework: see worker.py for what it is asked and answers."""

import tempfile

import numpy as np
import worker

from cifar_research import config


class Ours:
    """One preset at one batch size, precision and number of steps a call; its own augmentation and pipeline."""

    def __init__(self, options):
        words = [f"experiment={options.model}", f"training.batch_size={options.batch_size}"]
        words += [f"training.precision={options.precision}", f"training.steps_per_call={options.steps_per_call}"]
        self.cfg = config.compose([*words, "data.drop_remainder=true"])
        from cifar_research import cores, environment
        from cifar_research.data.datasets import Dataset, Split

        images, labels = worker.images(options.images)
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:  # a memory map, as the data cache's images are
            np.save(file.name, images)
            images = np.load(file.name, mmap_mode="c")
        split = Split(images, labels, np.arange(len(images)))
        data = Dataset("random", tuple("abcdefghij"), split, split, split, "", None)
        self.environment = environment.prepare(self.cfg.training, self.cfg.seed, cores.parts(self.cfg, data))
        import tensorflow as tf

        from cifar_research import loop, phases, steps, tasks

        self.tf = tf
        self.task = tasks.build(self.cfg, data, self.environment.parts)
        tasks.load_weights(self.cfg, self.task, data)
        record = loop.Record()
        _, view = tasks.enter(self.cfg, self.task, data, phases.plan(self.cfg), record)
        self.call = steps.many_steps(self.task, self.environment.strategy)
        self.steps = len(images) // options.batch_size
        arguments = (self.task, self.environment, split, self.cfg.training, 0, 1_000 * self.steps, True)
        self.iterator = iter(loop._distributed(*arguments))
        self.scored = Split(images, labels, np.arange(len(images))[: worker.SCORED])
        self.evaluation = loop.Evaluation(self.task, self.environment, self.cfg.training.eval_batch_size, view)

    def train(self):
        totals, done = self.tf.zeros([3], self.tf.float64), 0
        while done < self.steps:
            number = min(self.cfg.training.steps_per_call, self.steps - done)
            totals = self.call(self.iterator, self.tf.constant(number), totals)
            loss = float(totals[0])  # as the loop does, which looks at it after every call
            done += number
        return loss / float(totals[2])

    def evaluate(self):
        return self.evaluation(self.scored).loss

    def matrix(self):
        """Multiply matrices, as fast as this machine can at this precision: 20 times 2 * 2048^3 operations."""
        tf = self.tf
        kind = tf.bfloat16 if self.cfg.training.precision == "bfloat16" else tf.float32
        if not hasattr(self, "products"):
            self.products = tf.function(self._products)
            self.square = tf.cast(tf.random.normal([2048, 2048], stddev=2048**-0.5), kind)
        return float(self.products(self.square))

    def _products(self, square):
        """As many chains of products as the step has parts, since an operation then has one thread."""
        chains = [square * number for number in range(1, self.environment.parts + 1)]
        for number in range(20):
            place = number % len(chains)
            chains[place] = self.tf.matmul(square, chains[place])
        return sum(product[0, 0] for product in chains)

    def facts(self):
        from cifar_research import model

        return {
            "parameters": self.task.model.count_params(),
            "forward_flops": model.forward_flops(self.task.model),
        }


if __name__ == "__main__":
    worker.serve(Ours)
