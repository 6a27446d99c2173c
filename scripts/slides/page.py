"""The tables and the picture of docs/study.md, from its results by run."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np
from sections import CLAIMS, ON_TEST, OPEN_POINTS, PUBLISHED, SECTIONS, TRANSFER_GAINS, Claim

from cifar_research.comparison.statistics import t_half_width
from cifar_research.comparison.tables import study_rows
from cifar_research.display.tables import as_markdown

BEGIN, END = "<!-- table: {} -->", "<!-- end of the table -->"
BEST = 5  # trials of a search that its table shows
CURVES = ("first", "structure", "augmentation", "last")  # sections whose accuracies by epoch are drawn
Rows = Iterable[Mapping[str, str]]


def render(text: str, rows: Rows) -> str:
    """Return a page with its tables replaced by those of these results."""
    results = by_setting(rows)
    tables = {section.name: settings_table(section.name, results) for section in SECTIONS}
    tables |= {
        "claims": claims_table(CLAIMS, "the study says", results),
        "open_points": claims_table(OPEN_POINTS, "it helps to have", results),
        "transfer_gains": claims_table(TRANSFER_GAINS, "it helps transfer learning", results),
        "selection": selection_table(results),
    }
    for name, table in tables.items():
        pattern = re.escape(BEGIN.format(name)) + ".*?" + re.escape(END)
        text = re.sub(pattern, lambda _: f"{BEGIN.format(name)}\n\n{table}\n\n{END}", text, flags=re.DOTALL)  # noqa: B023
    return text


def by_setting(rows: Rows) -> dict[str, dict[str, dict[int, Mapping[str, str]]]]:
    """Return the rows by section, setting and seed."""
    results: dict[str, dict[str, dict[int, Mapping[str, str]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        results[row["section"]][row["setting"]][int(row["seed"])] = row
    return results


def settings_table(section: str, results) -> str:
    """Return a section's settings, each with the study's figure and the means over seeds."""
    if not results[section]:
        return "Not measured yet."
    published = grid() if section == "grid" else PUBLISHED.get(section, {})
    lines = [["setting", "the study", "validation accuracy", "test accuracy", "n", "epochs", "seconds"]]
    settings, note = list(results[section].items()), ""
    if section == "perspectives" and len(settings) > BEST:  # a search: a setting a trial
        settings.sort(key=lambda item: -mean(float(run["validation"]) for run in item[1].values()))
        settings, note = settings[:BEST], f"; the best {BEST} of {len(settings)} completed trials by validation"
    for setting, runs in settings:
        epochs, seconds = (f"{mean(float(run[key]) for run in runs.values()):,.0f}" for key in ("epochs", "seconds"))
        theirs = f"{published[setting]:.4f}" if setting in published else ""
        scores = [interval([float(run[key]) for run in runs.values()]) for key in ("validation", "test")]
        lines.append([f"`{setting or 'all'}`", theirs, *scores, str(len(runs)), epochs, seconds])
    columns = ("commit", "machine", "precision")
    origins = {tuple(run[name] for name in columns) for runs in results[section].values() for run in runs.values()}
    origin = "; ".join(f"commit `{commit}`, {machine}, {precision}" for commit, machine, precision in sorted(origins))
    return f"{as_markdown(lines)}\n\n*Means over n seeds, ± Student's 95 % interval{note}; {origin}.*"


def claims_table(claims: Iterable[Claim], heading: str, results) -> str:
    """Return each claim with the difference of test accuracies and what its interval says."""
    lines = [[heading, "difference of test accuracies", "n", "so it is"]]
    for claim in claims:
        differences = paired(claim, results)
        if len(differences) < 2:
            lines.append([claim.text, "", str(len(differences)), "not measured yet"])
            continue
        center, width = mean(differences), t_half_width(differences)
        verdict = "confirmed" if center - width > 0 else "refuted" if center + width < 0 else "undecided"
        lines.append([claim.text, interval(differences), str(len(differences)), verdict])
    return as_markdown(lines)


def paired(claim: Claim, results) -> list[float]:
    """Return the differences of test accuracies of the runs whose settings differ in the claim's part alone.

    They are means by seed, since runs with one seed are not independent; of a single seed, each difference.
    """
    differences = defaultdict(list)
    (section, part), (other_section, other_part) = claim.better, claim.worse
    for setting, runs in results[section].items():
        if f",{part}," not in f",{setting},":
            continue
        other = f",{setting},".replace(f",{part},", f",{other_part},").strip(",")
        for seed, run in results[other_section].get(other, {}).items():
            if seed in runs:
                differences[seed].append(float(runs[seed]["test"]) - float(run["test"]))
    by_seed = list(differences.values())
    return by_seed[0] if len(by_seed) == 1 else [mean(values) for values in by_seed]


def selection_table(results) -> str:
    """Return what validating on the test images is worth beside held-out ones."""
    lines = [["setting", "as the study measured", "held-out validation, then test", "difference", "selection alone"]]
    tested = ((ours, *item) for theirs, ours in ON_TEST.items() for item in results[theirs].items())
    for section, setting, runs in tested:
        held_out = results[section].get(setting, {})
        seeds = sorted(runs.keys() & held_out.keys())
        if not seeds:
            continue
        theirs, ours = (
            [float(of[seed][key]) for seed in seeds] for of, key in ((runs, "validation"), (held_out, "test"))
        )
        selected = [float(held_out[seed]["validation"]) - float(held_out[seed]["test"]) for seed in seeds]
        difference = [a - b for a, b in zip(theirs, ours, strict=True)]
        lines.append([f"`{setting}`", *map(interval, (theirs, ours, difference, selected))])
    return as_markdown(lines) if len(lines) > 1 else "Not measured yet."


def interval(values: list[float]) -> str:
    """Return a mean with its 95 % interval, where the values differ."""
    width = t_half_width(values)
    return f"{mean(values):.4f}" if math.isnan(width) else f"{mean(values):.4f} ± {width:.4f}"


def grid() -> dict[str, float]:
    """Return the study's validation accuracies by the names of our settings."""
    names = ("pooling", "dropout", "learning_rate", "loss")
    return {",".join(f"{name}={row[name]}" for name in names): float(row["val_accuracy"]) for row in study_rows()}


def draw(rows: Rows, folder: Path) -> None:
    """Draw the accuracies of each setting and of the study: study.png, and study_grid.png of the grid."""
    results = by_setting(rows)
    points = [
        (f"{section.name}: {setting or 'all'}", _values(runs, "test"), None)
        for section in SECTIONS
        if section.name not in ("grid", "perspectives")  # with pictures of their own
        for setting, runs in results[section.name].items()
    ]
    _draw_points(points, "test accuracy; dashed: the study's best", folder / "study.png")
    theirs = grid()
    points = [
        (re.sub(r"\w+=", " ", setting), _values(runs, "validation"), theirs.get(setting))
        for setting, runs in results["grid"].items()
    ]
    points.sort(key=lambda point: -mean(point[1]))
    _draw_points(points, "validation accuracy; x: the study's, dashed: its best", folder / "study_grid.png")


def _values(runs: Mapping[int, Mapping[str, str]], key: str) -> list[float]:
    return [float(run[key]) for run in runs.values()]


def _draw_points(points: list[tuple[str, list[float], float | None]], label: str, path: Path) -> None:
    """Draw the mean of each setting with its 95 % interval, and the study's value if there is one."""
    from matplotlib.figure import Figure

    if not points:
        return
    names, ours, theirs = zip(*points, strict=True)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure((8, 1.5 + 0.25 * len(names)), layout="constrained")
        axes, heights = figure.subplots(), range(len(names))
        widths = np.nan_to_num([t_half_width(values) for values in ours])
        axes.errorbar([mean(values) for values in ours], heights, xerr=widths, fmt="o", color="#0969da", capsize=3)
        axes.plot(np.array(theirs, float), heights, "x", color="#bc4c00")
        axes.axvline(0.8329, color="#bc4c00", linestyle="--")
        axes.set(yticks=heights, yticklabels=names, xlabel=label)
        axes.invert_yaxis()
        figure.savefig(path, dpi=110)


def draw_curves(rows: Rows, folder: Path) -> None:
    """Draw the accuracies by epoch of each section of CURVES: study_<section>.png, without settings that lack them."""
    from matplotlib.figure import Figure

    results = by_setting(rows)
    for section in CURVES:
        settings = {
            setting: runs
            for setting, runs in results[section].items()
            if all(run["training_curve"] for run in runs.values())
        }
        if not settings:
            continue
        with matplotlib.rc_context({"font.size": 9}):
            figure = Figure((6, 3.5), layout="constrained")
            axes = figure.subplots()
            for number, (setting, runs) in enumerate(settings.items()):
                for split, style in (("training", "--"), ("validation", "-")):
                    curves = np.array([run[f"{split}_curve"].split() for run in runs.values()], float)
                    epochs, label = range(1, curves.shape[1] + 1), f"{setting}, {split}"
                    axes.plot(epochs, curves.mean(0), style, marker=".", color=f"C{number}", label=label)
                    axes.fill_between(epochs, curves.min(0), curves.max(0), color=f"C{number}", alpha=0.15)
            axes.set(xlabel="epoch", ylabel="accuracy: mean, lowest and highest")
            axes.legend(frameon=False)
            axes.xaxis.get_major_locator().set_params(integer=True)
            figure.savefig(folder / f"study_{section}.png", dpi=110)
