"""Classify the features of a run's backbone by scikit-learn's logistic regression, beside the run's own head.

    .venv/bin/python scripts/peers/logistic_regression.py <run of training=feature_extraction>

A reference for the head's training: the optimum of a convex problem, whose regularisation is chosen on the validation
images (Kornblith et al. 2019). Prints its accuracy for each C, and the test accuracy of the best beside the run's.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

import cifar_research
from cifar_research import config
from cifar_research.display import console
from cifar_research.runs.report import read_overrides

REGULARISATIONS = np.logspace(-5, 0, 6)
BATCH = 256


def features(classifier, frozen, split):
    """Return the features of a split's images, float32 [N, C], and their labels."""
    import tensorflow as tf

    compute = tf.function(lambda images: frozen(classifier.preprocess(images)), autograph=False)
    images, rows = split.images, split.indices
    parts = [compute(tf.constant(images[rows[i : i + BATCH]])).numpy() for i in range(0, len(rows), BATCH)]
    return np.concatenate(parts).astype(np.float32), split.labels[rows]


@console.command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    classifier = cifar_research.load(args.run)
    from cifar_research.data import datasets
    from cifar_research.models.classifier import parts
    from cifar_research.training import frozen

    data = datasets.load(config.parse(read_overrides(args.run)).data)
    below = frozen.below_head(*parts(classifier.model))
    (train, labels), val, test = (
        features(classifier, below.frozen, getattr(data, name)) for name in ("train", "val", "test")
    )
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    best, chosen = -1.0, None
    for strength in REGULARISATIONS:
        model = LogisticRegression(C=strength, max_iter=500).fit((train - mean) / deviation, labels)
        accuracy = model.score((val[0] - mean) / deviation, val[1])
        print(f"C {strength:g}: validation accuracy {accuracy:.4f}", flush=True)
        if accuracy > best:
            best, chosen = accuracy, model
    test_accuracy = chosen.score((test[0] - mean) / deviation, test[1])
    print(f"test accuracy {test_accuracy:.4f}; the run's head {classifier.report['test']['accuracy']:.4f}")


if __name__ == "__main__":
    main()
