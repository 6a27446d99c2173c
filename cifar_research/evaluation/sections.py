"""Tables and sentences for an evaluation and for a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_research.config.schema import METRICS
from cifar_research.display import tables
from cifar_research.display.document import Section
from cifar_research.display.tables import Table
from cifar_research.evaluation import corruptions
from cifar_research.evaluation.calibration import MIN_IMAGES_OF_ECE
from cifar_research.runs.metrics import display_name

Result = Mapping[str, Any]

# Field and format of each column, by heading.
_ACCURACIES = {"images of": "of", "images": "images:,", "accuracy": "accuracy:.4f", "95 % interval": "interval",
               "cross-entropy": "cross_entropy:.4f"}  # fmt: skip
_BY_CLASS = {"class": "class", "images": "images:,", "precision": "precision:.4f", "recall": "recall:.4f",
             "F1": "f1:.4f"}  # fmt: skip
_PAIRS = {"truth": "truth", "prediction": "prediction", "images": "images", "share of the class": "share:.4f"}
_CALIBRATION = {"calibration": "name", "temperature": "temperature:.4f", "ECE": "ece:.4f", "cross-entropy":
                "cross_entropy:.4f", "Brier score": "brier:.4f", "mean confidence": "confidence:.4f"}  # fmt: skip
_NAMES = {"loss": "loss, as trained,", "auc": "area under the ROC curve, one class against the others,"}
_GROUPS = {"group": "name", "runs": "runs", "mean accuracy": "mean:.4f", "95 % interval": "between",
           "accuracy of the vote": "vote:.4f"}  # fmt: skip
_GROUPS_BY_CLASS = {"class": "class", "images": "images:,", "first": "first:.4f", "second": "second:.4f",
                    "only first right": "only_first", "only second right": "only_second", "p": "p:.3g",
                    "p, Holm": "p_holm:.3g"}  # fmt: skip
_DIFFERENCES = {"image": "index", "truth": "truth", "first": "one", "first probability": "first_probability:.4f",
                "first runs right": "first_share:.2f", "second": "other",
                "second probability": "second_probability:.4f", "second runs right": "second_share:.2f"}  # fmt: skip


def as_text(sections: Sequence[Section], headings: Collection[str]) -> str:
    """Return the sentences and tables of some sections for a terminal."""
    parts = [part for section in sections if section.heading in headings for part in section.parts]
    return "\n\n".join(
        part if isinstance(part, str) else tables.as_text(part) for part in parts if isinstance(part, (str, list))
    )


def evaluation(result: Result, figures: Mapping[str, Path]) -> list[Section]:
    """Return the sections of an evaluation of a run, or of several as one; figures: paths by name."""
    pairs = [tables.of(result["confused_pairs"], _PAIRS)] if result["confused_pairs"] else []
    sections = [
        Section("Accuracy", [_accuracies(result), *_of_accuracies(result)]),
        Section(
            "Classes", [tables.of(result["by_class"], _BY_CLASS), "–: no image of the class, or none predicted as it."]
        ),
        Section("Confusion", [figures["confusion"], *pairs]),
        Section("Calibration", [_calibration(result), _of_calibration(result), figures["reliability"]]),
    ]
    if "misclassified" in figures:
        text = "The misclassified test images with the most probable wrong class: true class → predicted class, probability."
        sections.append(Section("Worst mistakes", [text, figures["misclassified"]]))
    if robustness := result.get("corruptions"):
        text = (
            f"Mean over {len(robustness['means'])} corruptions and 5 severities: {robustness['mean']:.4f}; the same "
            f"{robustness['images']:,} test images without corruption: {robustness['clean']:.4f}. The corruptions are "
            "like those of CIFAR-10-C (Hendrycks and Dietterich 2019), drawn from a seed. Compare runs with each other, "
            "not with published figures."
        )
        table = [["corruption", "mean", *map(str, corruptions.SEVERITIES)]]
        for name, values in robustness["accuracies"].items():
            table.append([name.replace("_", " "), *(f"{v:.4f}" for v in (robustness["means"][name], *values))])
        sections.append(Section("Robustness", [text, table, figures["corruptions"]]))
    if "grad_cam" in figures:
        text = "Grad-CAM (Selvaraju et al. 2017) for the predicted class, and below it for the true class."
        sections.append(Section("Evidence", [text, figures["grad_cam"]]))
    runs = [
        f"{run['run']}, seed {run['seed']}, config {run['config_hash']}." for run in result.get("members", [result])
    ]
    sections.append(Section("Run", runs))
    return sections


def _accuracies(result: Result) -> Table:
    members = result.get("members", [])
    by_name = {Path(row["run"]).name: row for row in members}
    named = by_name if len(by_name) == len(members) else {row["run"]: row for row in members}
    if members:
        named[f"mean of the {len(members)} runs"] = {"images": None, "cross_entropy": None} | result["mean"]
    named["ensemble" if members else f"{result['data']['name']} test"] = result["test"]
    named |= {f"views: {name}": row for name, row in result.get("views", {}).items()}
    if "cifar10_1" in result:
        named["CIFAR-10.1 v6"] = result["cifar10_1"]
    rows = [row | {"of": name, "interval": _interval(row["interval"])} for name, row in named.items()]
    if robustness := result.get("corruptions"):
        rows.append({"of": f"{len(robustness['means'])} corruptions", "images": robustness["images"],
                     "accuracy": robustness["mean"], "interval": None, "cross_entropy": None})  # fmt: skip
    return tables.of(rows, _ACCURACIES)


def _of_accuracies(result: Result) -> list[str]:
    test, reported = result["test"], result.get("reported_accuracy")
    named = [f"{_NAMES.get(name) or display_name(name)} {test[name]:.4f}" for name in (*METRICS, "auc")
             if name != "accuracy" and test.get(name) is not None]  # fmt: skip
    sentences = [
        "The 95 % intervals (Wilson) are over the images: they do not include the spread of the seeds.",
        f"Other metrics: {', '.join(named)}.",
    ]
    if "members" in result:
        sentences.append(
            "The ensemble's probabilities are the mean of its runs' (Lakshminarayanan et al. 2017), calibrated as one. Only "
            "the interval of the runs' mean accuracy is over the runs (Student). "
            f"Two runs disagree on {result['disagreement']:.4f} of the images, mean over pairs (Fort et al. 2019)."
        )
    if reported is not None and abs(reported - test["accuracy"]) > 5e-4:
        sentences.append(f"The run's report.json says {reported:.4f}: another device or batch size rounds differently.")
    if not result["data"]["is_own"]:
        sentences.append("The training had other images or other splits.")
    return sentences + _note(result)


def _calibration(result: Result) -> Table:
    measured = {"as trained": result["calibration"]["before"], "scaled": result["calibration"]["after"]}
    return tables.of([row | {"name": name} for name, row in measured.items() if row], _CALIBRATION)


def _of_calibration(result: Result) -> str:
    text = "The temperature is from the evaluation on the data of the training."
    if reason := result["uncalibrated"]:
        text = f"Predictions are not calibrated: {reason}."
    elif num := result["temperature_images"]:
        text = f"The temperature was fitted on {num:,} validation images."
    if result["calibration"]["before"]["ece"] is None:
        return f"{text} No ECE: with fewer than {MIN_IMAGES_OF_ECE} test images it is large by chance."
    bins = result["calibration"]["bins"]
    return f"{text} ECE is over {bins} equal bins of confidence (Guo et al. 2017); the temperature does not change the accuracy."


def comparison(result: Result, figures: Sequence[Path]) -> list[Section]:
    """Return the sections of a comparison; figures: of images where the groups differ."""
    runs = [f"{name.capitalize()}: {', '.join(folders)}." for name, folders in result["runs"].items()]
    holm = "p, Holm: adjusted for the number of classes (Holm 1979). –: right on the same images, so nothing to test."
    count = {name: f"{value:,}" for name, value in result["table"].items()}
    fourfold = [
        ["images", "second right", "second wrong"],
        ["first right", count["both_right"], count["only_first"]],
        ["first wrong", count["only_second"], count["both_wrong"]],
    ]
    own = (
        []
        if result["data"]["is_own"]
        else [f"On the test images of {result['data']['name']}, other ones than the first run's."]
    )
    accuracy = [*runs, *own, _groups(result), fourfold, *_mcnemar(result), *_seeds(result), *_note(result)]
    sections = [
        Section("Accuracy", accuracy),
        Section("By class", [tables.of(result["by_class"], _GROUPS_BY_CLASS), holm]),
    ]
    if num := len(result["differences"]):
        few = differences(result)[:21]
        text = (
            f"The first {len(few) - 1} of {num:,} images that only one classifier gets right, sorted by the difference in "
            "the probability of the true class; the CSV file has all. Above each image: the true class, and the "
            "predictions of the first | the second."
        )
        sections.append(Section("Where they differ", [text, few, *figures]))
    return sections


def differences(result: Result) -> Table:
    """Return a row for each image that only one group classifies correctly."""
    names = result["classes"]
    rows = [row | {"truth": names[row["label"]], "one": names[row["first"]], "other": names[row["second"]]}
            for row in result["differences"]]  # fmt: skip
    return tables.of(rows, _DIFFERENCES)


def _groups(result: Result) -> Table:
    rows = [result[name] | {"name": name, "runs": len(result[name]["accuracies"]),
                            "between": _interval(result[name]["interval"])} for name in ("first", "second")]  # fmt: skip
    return tables.of(rows, _GROUPS)


def _interval(bounds: Sequence[float] | None) -> str:
    return "no spread" if bounds is None else "{:.4f} – {:.4f}".format(*bounds)


def _note(result: Result) -> list[str]:
    note = result["data"]["note"]
    return [f"Note: {note}."] if note else []


def _mcnemar(result: Result) -> list[str]:
    only_first, only_second = result["table"]["only_first"], result["table"]["only_second"]
    is_single = all(len(result[name]["accuracies"]) == 1 for name in ("first", "second"))
    votes = "The two" if is_single else "The votes of the groups' runs"
    if result["p"] is None:
        return [f"{votes} are right on the same images, so McNemar's test cannot compare them."]
    verdict = "differ" if result["p"] < 0.05 else "do not differ beyond chance"
    num = only_first + only_second
    few = f" {num} images are too few to show a difference; at least 6 are needed." if num < 6 else ""
    return [
        f"{votes} {verdict} on these images: McNemar's exact test, {only_first:,} images that only the first gets right "
        f"against {only_second:,}, p = {result['p']:.3g}.{few} This is about these trained weights, not about other seeds."
    ]


def _seeds(result: Result) -> list[str]:
    nums = [len(result[name]["accuracies"]) for name in ("first", "second")]
    unit = "folds" if result["is_over_folds"] else "seeds"
    if result["p_of_seeds"] is not None:
        test = "paired" if result["is_paired"] else "Welch's"
        return [f"The mean accuracies over runs: p = {result['p_of_seeds']:.3g}, {test} t-test over {unit}."]
    if max(nums) == 1:
        return []
    reason = "a group has a single run" if min(nums) < 2 else "their differences do not vary"
    return [f"The mean accuracies over runs: no t-test over {unit}, since {reason}."]
