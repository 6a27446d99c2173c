"""What evaluation.json and a comparison say, as tables and sentences for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_research.display import tables
from cifar_research.display.document import Section
from cifar_research.display.tables import Table, as_text
from cifar_research.evaluation import corruptions, scores
from cifar_research.evaluation.calibration import MIN_IMAGES_OF_ECE

Result = Mapping[str, Any]


def summary(result: Result) -> str:
    """Return what a terminal shows of an evaluation."""
    parts = [as_text(_accuracies(result)), as_text(_calibration(result))]
    if reason := result["uncalibrated"]:
        parts.append(f"No temperature: {reason}.")
    parts.append(as_text(_by_class(result)))
    if note := result["data"]["note"]:
        parts.append(f"Note: {note}")
    seconds = sum(result["seconds"].values())
    corrupted = result["seconds"].get("corruptions")
    parts.append(f"{seconds:.0f} s in all" + (f", {corrupted:.0f} s of corruptions." if corrupted else "."))
    return "\n\n".join(parts)


def evaluation(result: Result, figures: Mapping[str, Path]) -> list[Section]:
    """Return the sections of a run's evaluation; figures: by name, those that were drawn."""
    test = result["test"]
    first: list[Any] = [
        _accuracies(result),
        f"Loss, as trained, {test['loss']:.4f}; cross-entropy {test['cross_entropy']:.4f} nats. Intervals are 95 %, "
        "Wilson's, of the images: they say nothing of how another seed would do.",
    ]
    reported = result["reported_accuracy"]
    if reported is not None and abs(reported - test["accuracy"]) > 5e-4:
        first.append(f"The run's report.json says {reported:.4f}: another device or batch size rounds differently.")
    if not result["data"]["is_own"]:
        first.append("These are not the images, or not the splits, that the run was trained with.")
    if note := result["data"]["note"]:
        first.append(f"Note: {note}.")
    macro = scores.macro(result["by_class"])
    num = len(result["classes"])
    means = ", ".join(
        f"{name} {value:.4f}" + (f" (of {known} of {num})" if known < num else "")
        for name, (value, known) in macro.items()
    )
    pairs = tables.of(result["confused_pairs"], {"truth": "truth", "prediction": "prediction", "images": "images",
                                                 "share of the class": "share:.4f"})  # fmt: skip
    made = [
        Section("Accuracy", first),
        Section(
            "Classes",
            [_by_class(result), f"Means over the classes: {means}. –: no image of the class, or none taken for it."],
        ),
        Section("Confusion", [figures["confusion"], *([pairs] if len(pairs) > 1 else [])]),
        Section("Calibration", [_calibration(result), _of_temperature(result), figures["reliability"]]),
    ]
    if "misclassified" in figures:
        text = "The misclassified test images whose wrong class is the likeliest, truth → prediction, its probability."
        made.append(Section("Worst mistakes", [text, figures["misclassified"]]))
    if "corruptions" in result:
        found = result["corruptions"]
        text = (
            f"Mean over {len(found['means'])} corruptions and 5 severities: {found['mean']:.4f}, of the same "
            f"{found['images']:,} test images uncorrupted {found['clean']:.4f}. The families are those of CIFAR-10-C "
            "(Hendrycks and Dietterich 2019), made here from a seed: compare runs by them, and not with published figures."
        )
        made.append(Section("Robustness", [text, _corruptions(result), figures["corruptions"], figures["corrupted"]]))
    if "grad_cam" in figures:
        text = (
            "Grad-CAM (Selvaraju et al. 2017): where the last feature map holds evidence for the predicted class, and below "
            "it for the true one where that is another. «None»: its mean gradient speaks for the class nowhere."
        )
        made.append(Section("Evidence", [text, figures["grad_cam"]]))
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
    made.append(Section("Run", [f"{result['run']}, config {result['config_hash']}. Seconds: {seconds}."]))
    return made


def _accuracies(result: Result) -> Table:
    named = {f"{result['data']['name']} test": result["test"]}
    named |= {f"views: {name}": found for name, found in result.get("views", {}).items()}
    if "cifar10_1" in result:
        named["CIFAR-10.1 v6"] = result["cifar10_1"]
    rows = [found | {"of": name, "interval": _interval(found["interval"])} for name, found in named.items()]
    if "corruptions" in result:
        found = result["corruptions"]
        rows.append({"of": f"{len(found['means'])} corruptions", "images": found["images"], "accuracy": found["mean"],
                     "interval": None, "cross_entropy": None})  # fmt: skip
    return tables.of(rows, {"images of": "of", "images": "images:,", "accuracy": "accuracy:.4f", "95 % interval": "interval",
                            "cross-entropy": "cross_entropy:.4f"})  # fmt: skip


def _by_class(result: Result) -> Table:
    return tables.of(result["by_class"], {"class": "class", "images": "images:,", "precision": "precision:.4f",
                                          "recall": "recall:.4f", "F1": "f1:.4f"})  # fmt: skip


def _calibration(result: Result) -> Table:
    rows = [result["calibration"][how] and result["calibration"][how] | {"name": name}
            for name, how in (("as trained", "before"), ("scaled", "after"))]  # fmt: skip
    return tables.of(filter(None, rows), {
        "calibration": "name", "temperature": "temperature:.4f", "ECE": "ece:.4f", "cross-entropy": "cross_entropy:.4f",
        "Brier score": "brier:.4f", "mean confidence": "confidence:.4f"})  # fmt: skip


def _of_temperature(result: Result) -> str:
    num = result["temperature_images"]
    ece = (
        f"ECE is over {result['calibration']['bins']} equal bins of confidence (Guo et al. 2017); accuracy does not change "
        "with the temperature."
    )
    if result["calibration"]["before"]["ece"] is None:
        ece = f"No ECE: it needs at least {MIN_IMAGES_OF_ECE} test images, since of fewer it is large by chance."
    if reason := result["uncalibrated"]:
        return f"Predictions are not calibrated: {reason}. {ece}"
    if num is not None:
        return f"The temperature was fitted on {num:,} validation images. {ece}"
    return f"The temperature is that of the evaluation on the run's own data. {ece}"


def _corruptions(result: Result) -> Table:
    found = result["corruptions"]
    table = [["corruption", "mean", *map(str, corruptions.SEVERITIES)]]
    for name, values in found["accuracies"].items():
        table.append([name.replace("_", " "), *(f"{value:.4f}" for value in (found["means"][name], *values))])
    return table


def comparison_summary(result: Result) -> str:
    """Return what a terminal shows of a comparison."""
    return "\n\n".join([as_text(_groups(result)), as_text(_fourfold(result)), *_verdicts(result)])


def comparison(result: Result, figures: Sequence[Path]) -> list[Section]:
    """Return the sections of a comparison; figures: of the images where the two differ."""
    by_class = tables.of(result["by_class"], {
        "class": "class", "images": "images:,", "first": "first:.4f", "second": "second:.4f", "only first right":
        "only_first", "only second right": "only_second", "p": "p:.3g", "p, Holm": "p_holm:.3g"})  # fmt: skip
    runs = [f"{name.capitalize()}: {', '.join(folders)}." for name, folders in result["runs"].items()]
    made = [
        Section("Accuracy", [*runs, _groups(result), _fourfold(result), *_verdicts(result)]),
        Section(
            "By class",
            [
                by_class,
                "p, Holm: adjusted for the number of classes (Holm 1979). –: the two are right "
                "on the same images, so that there is nothing to test.",
            ],
        ),
    ]
    if few := differences(result)[:21]:
        text = (
            f"The first {len(few) - 1} of {len(result['differences']):,} images that one gets right and the other does "
            "not, by the difference of the probabilities of their true class; the CSV file has all. Above a picture: the truth, "
            "and below it what the first and the second take it for."
        )
        made.append(Section("Where they differ", [text, few, *figures]))
    return made


def differences(result: Result) -> Table:
    """Return the images that one group gets right and the other does not, a row each."""
    names = result["classes"]
    rows = [row | {"truth": names[row["label"]], "one": names[row["first"]], "other": names[row["second"]]}
            for row in result["differences"]]  # fmt: skip
    return tables.of(rows, {
        "image": "index", "truth": "truth", "first": "one", "first probability": "first_probability:.4f",
        "first runs right": "first_share:.2f", "second": "other", "second probability": "second_probability:.4f",
        "second runs right": "second_share:.2f"})  # fmt: skip


def difference_title(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what stands above a picture of an image where two groups differ."""
    return f"{names[row['label']]}\n{names[row['first']]} | {names[row['second']]}"


def _groups(result: Result) -> Table:
    rows = [result[name] | {"name": name, "runs": len(result[name]["accuracies"]),
                            "between": _interval(result[name]["interval"])} for name in ("first", "second")]  # fmt: skip
    return tables.of(rows, {"group": "name", "runs": "runs", "mean accuracy": "mean:.4f", "95 % interval": "between",
                            "accuracy of the vote": "vote:.4f"})  # fmt: skip


def _interval(bounds: Sequence[float] | None) -> str:
    return "no spread" if bounds is None else "{:.4f} – {:.4f}".format(*bounds)


def _fourfold(result: Result) -> Table:
    found = result["table"]
    return [
        ["images", "second right", "second wrong"],
        ["first right", f"{found['both_right']:,}", f"{found['only_first']:,}"],
        ["first wrong", f"{found['only_second']:,}", f"{found['both_wrong']:,}"],
    ]


def _verdicts(result: Result) -> list[str]:
    table, groups = result["table"], [result[name] for name in ("first", "second")]
    nums = [len(group["accuracies"]) for group in groups]
    votes = "The votes of the groups' runs" if max(nums) > 1 else "The two"
    discordant = table["only_first"] + table["only_second"]
    if result["p"] is None:
        told = [f"{votes} are right on the same images, so that McNemar's test has nothing to go by."]
    else:
        said = "differ" if result["p"] < 0.05 else "do not differ beyond chance"
        few = (
            f" No {discordant} images could show a difference, however they fall; it takes 6." if discordant < 6 else ""
        )
        told = [
            f"{votes} {said} on these images: McNemar's exact test, {table['only_first']:,} images that only the first "
            f"gets right against {table['only_second']:,}, p = {result['p']:.3g}.{few} It speaks of these trained "
            "weights, and not of how other seeds would do."
        ]
    paired = "paired" if result["is_paired"] else "Welch's"
    if result["p_of_seeds"] is not None:
        told.append(f"The mean accuracies over runs: p = {result['p_of_seeds']:.3g}, {paired} t-test over seeds.")
    elif max(nums) > 1:
        reason = "a group has a single run" if min(nums) < 2 else "their differences do not vary"
        told.append(f"The mean accuracies over runs: no t-test over seeds, since {reason}.")
    if any(group["interval"] is None for group in groups):
        told.append("No spread: all runs of the group have the same accuracy, so there is no interval over seeds.")
    if note := result["data"]["note"]:
        told.append(f"Note: {note}.")
    return told
