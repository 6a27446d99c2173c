"""Draw test accuracy by number of training images, a line a technique: few_images.py PICTURE CSV.

CSV: a line for each run, with technique, training_images and test, such as docs/results/transfer.csv. Means over seeds
with Student's 95 % interval.
"""

import csv
import sys
from collections import defaultdict
from statistics import mean

import numpy as np
from matplotlib.figure import Figure

from cifar_research.comparison.statistics import t_half_width


def main() -> None:
    picture, table = sys.argv[1:]
    scores = defaultdict(lambda: defaultdict(list))
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            scores[row["technique"]][int(row["training_images"])].append(float(row["test"]))
    figure = Figure((6.5, 4), layout="constrained")
    axes = figure.subplots()
    for technique, by_size in sorted(scores.items(), key=lambda item: -mean(max(item[1].items())[1])):
        sizes = sorted(by_size)
        centers = [mean(by_size[size]) for size in sizes]
        widths = [np.nan_to_num(t_half_width(by_size[size])) for size in sizes]
        axes.errorbar(sizes, centers, yerr=widths, marker="o", capsize=3, label=technique)
    axes.set(xscale="log", xlabel="training images", ylabel="test accuracy")
    ticks = sorted({size for by_size in scores.values() for size in by_size})
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
