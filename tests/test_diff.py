"""scripts/report --diff: what differs between two runs or sweeps, tests of the results, curves."""

import json

import numpy as np
import pytest
from conftest import refusals
from PIL import Image
from test_compare import made, write_run

from cifar_research import report as command
from cifar_research.comparison import diff
from cifar_research.comparison import runs as reading
from cifar_research.comparison.ranking import Comparison
from cifar_research.runs import report
from cifar_research.runs.ledger import LEDGER, Job

pytestmark = pytest.mark.draws
GIT = {"commit": "c" * 40, "dirty": False, "changes": None, "changes_sha256": None, "not_kept": None}
FACTS = {"versions": {"keras": "3.15"}, "hardware": {"cpu": "x", "cores": 2}, "git": GIT, "forward_flops": 7}


def write_sweep(folder, rows):
    """Write a sweep's folder; rows: of (overrides, accuracy)."""
    jobs = []
    for overrides, accuracy in rows:
        write_run(folder / ",".join(overrides), overrides, accuracy=accuracy, more=FACTS)
        jobs.append(Job(",".join(overrides), list(overrides), made(*overrides), state="completed"))
    lines = [{"arguments": []}, *(job.line for job in jobs)]
    (folder / LEDGER).write_text("".join(json.dumps(line) + "\n" for line in lines))


def shown(a, b):
    """Return {heading: parts} of A and B."""
    result, warnings = diff.read([str(a), str(b)])
    assert not warnings
    return {section.heading: list(section.parts) for section in result.sections()}


def rows_of(parts, number=0):
    header, *rows = [part for part in parts if isinstance(part, list)][number]
    return [dict(zip(header, row, strict=True)) for row in rows]


def text_of(parts):
    return "\n".join(part for part in parts if isinstance(part, str))


def test_equal_runs_differ_in_nothing(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, ["seed=1"], more=FACTS)
    parts = shown(tmp_path / "a", tmp_path / "b")["What differs"]
    assert parts[0] == f"A: {tmp_path / 'a'}, 1 completed" and not [part for part in parts if isinstance(part, list)]
    assert parts[-1] == "The same: config, data, versions, hardware, code."


@pytest.mark.parametrize(
    ("overrides", "more", "expected"),
    [
        (["seed=2"], {}, [("config", "seed", "1", "2")]),
        (["model.dropout=0.5"], {}, [("config", "seed", "1", "0"), ("config", "model.dropout", "0", "0.5")]),
        # A key that does not affect the results is left out.
        (["seed=1", "training.keep_checkpoints=3"], {}, []),
        (["seed=1"], {"versions": {"keras": "3.16", "new": "1"}},
         [("versions", "keras", "3.15", "3.16"), ("versions", "new", "–", "1")]),
        (["seed=1"], {"hardware": {"cpu": "y", "cores": 2}}, [("hardware", "cpu", "x", "y")]),
        (["seed=1"], {"data": {"name": "x", "fingerprint": "f", "classes": ["c" * 99], "sizes": {"train": 9, "val": 1, "test": 1}}},
         [("data", "fingerprint", "–", "f"), ("data", "sizes.train", "45000", "9"), ("data", "sizes.val", "5000", "1"),
          ("data", "sizes.test", "10000", "1"), ("data", "classes", "['a']", "['" + "c" * 58 + "…")]),
        (["seed=1"], {"git": GIT | {"commit": "d" * 40}}, [("code", "commit", "c" * 12, "d" * 12)]),
        (["seed=1"], {"git": GIT | {"dirty": True, "changes": "changes.patch", "changes_sha256": "e" * 64}},
         [("code", "changes", "none", "e" * 12)]),
        (["seed=1"], {"git": GIT | {"dirty": True, "not_kept": "too large"}}, [("code", "changes", "none", "too large")]),
        (["seed=1"], {"git": None}, [("code", "commit", "c" * 12, "not a git checkout"), ("code", "changes", "none", "–")]),
    ],
)  # fmt: skip
def test_what_differs_between_two_runs(tmp_path, overrides, more, expected):
    write_run(tmp_path / "a", ["seed=1"], more=FACTS)
    write_run(tmp_path / "b", overrides, more=FACTS | more)
    parts = shown(tmp_path / "a", tmp_path / "b")["What differs"]
    result = [tuple(row.values()) for row in rows_of(parts)] if expected else []
    assert sorted(result) == sorted(expected)


def test_two_runs_have_the_interval_of_their_difference_and_mcnemars_test(tmp_path):
    for name, accuracy in (("a", 0.5), ("b", 0.53)):
        write_run(tmp_path / name, ["seed=1"], accuracy=accuracy, more=FACTS)
    parts = shown(tmp_path / "a", tmp_path / "b")["Results"]
    val, test = rows_of(parts)
    assert (val["score"], test["score"], test["A"], test["B"], test["B - A"]) == (
        "val accuracy", "test accuracy", "0.5000", "0.5300", "+0.0300",
    )  # fmt: skip
    # Newcombe's interval of 10,000 images, by hand from the two of Wilson.
    assert test["A 95 %"] == "[0.4902, 0.5098]" and test["test of the difference"] == "[+0.0161, +0.0438], beyond noise"
    assert val["test of the difference"] == "[+0.0104, +0.0496], beyond noise"
    numbers = {row[""]: (row["A"], row["B"]) for row in rows_of(parts, 1)}
    assert numbers["test loss"] == ("0.5000", "0.4700") and numbers["FLOPs"] == ("7", "7")
    assert f"evaluate {tmp_path / 'a'} --against {tmp_path / 'b'}" in parts[-1]


def test_a_monitored_metric_is_compared_beside_the_accuracy(tmp_path):
    for name, accuracies in (("a", (0.5, 0.6, 0.7)), ("b", (0.53, 0.62, 0.725))):
        for seed, accuracy in enumerate(accuracies):
            overrides = ["training.monitor=loss", f"seed={seed}", f"model.dropout=0.{'ab'.index(name)}"]
            write_run(tmp_path / f"{name}{seed}", overrides, accuracy=accuracy, more=FACTS)
    sides = [[run for run in reading.find([str(tmp_path)])[0] if run.folder.name[0] == name] for name in "ab"]
    both = diff.Diff((tmp_path / "a", tmp_path / "b"), (Comparison(sides[0]), Comparison(sides[1])))
    results = {section.heading: section.parts for section in both.sections()}["Results"]
    scores = {row["score"]: (row["B - A"], row["test of the difference"]) for row in rows_of(results)}
    assert list(scores) == ["val accuracy", "test accuracy", "val loss", "test loss"]
    assert scores["test loss"] == ("-0.0250", "p = 0.0131, paired t-test, 3 seeds")
    # One run has no interval of its loss.
    parts = shown(tmp_path / "a0", tmp_path / "b0")["Results"]
    assert [row["test of the difference"] for row in rows_of(parts)][2:] == ["none: a single seed"] * 2


def seeds(word, accuracies, first=0):
    return [((word, f"seed={first + i}"), accuracy) for i, accuracy in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # differences 0.03, 0.02, 0.025, whose t is 8.66
        (seeds("model.dropout=0", (0.5, 0.6, 0.7)), seeds("model.dropout=0.5", (0.53, 0.62, 0.725)),
         ["p = 0.0131, paired t-test, 3 seeds"]),
        (seeds("model.dropout=0", (0.5, 0.6, 0.7)), seeds("model.dropout=0.5", (0.53, 0.62, 0.725), first=7),
         ["p = 0.772, Welch's t-test, 3 and 3 seeds"]),
        (seeds("model.dropout=0", (0.5, 0.5)), seeds("model.dropout=0.5", (0.6, 0.6)), ["no spread"]),
        (seeds("model.dropout=0", (0.5, 0.6)), seeds("model.dropout=0.5", (0.6,)), ["none: a single seed"]),
    ],
)  # fmt: skip
def test_sweeps_are_tested_over_their_seeds(tmp_path, a, b, expected):
    write_sweep(tmp_path / "a", a)
    write_sweep(tmp_path / "b", b)
    rows = rows_of(shown(tmp_path / "a", tmp_path / "b")["Results"])
    assert [row["test of the difference"] for row in rows] == expected * 2


RATES = {rate: f"optimizer.learning_rate={rate}" for rate in (0.1, 0.2, 0.3)}


@pytest.mark.parametrize(
    ("a", "b", "expected", "note"),
    [
        # The same grid, with another value of a key that is fixed in each.
        ([(RATES[0.1], "model.dropout=0"), (RATES[0.2], "model.dropout=0")],
         [(RATES[0.1], "model.dropout=0.5"), (RATES[0.2], "model.dropout=0.5")],
         [{"learning_rate": "0.1"}, {"learning_rate": "0.2"}], None),
        # Grids that overlap in one setting.
        ([(RATES[0.1],), (RATES[0.2],)], [(RATES[0.2],), (RATES[0.3],)], [{"learning_rate": "0.2"}],
         "Settings without a counterpart: 1 of A, 1 of B."),
        # No common value: the keys that have the same values on both sides are compared.
        ([(RATES[0.1], "model.dropout=0"), (RATES[0.1], "model.dropout=0.5")],
         [(RATES[0.2], "model.dropout=0"), (RATES[0.2], "model.dropout=0.5")], [{"dropout": "0"}, {"dropout": "0.5"}], None),
        ([(RATES[0.1],), (RATES[0.2],)], [(RATES[0.3],)], [{}],
         "No setting of A corresponds to one of B, so the best of each by validation are compared."),
    ],
)  # fmt: skip
def test_settings_of_sweeps_are_matched(tmp_path, a, b, expected, note):
    for name, grid in (("a", a), ("b", b)):
        write_sweep(tmp_path / name, [(overrides, 0.9 - i / 10) for i, overrides in enumerate(grid)])
    result, _ = diff.read([str(tmp_path / "a"), str(tmp_path / "b")])
    pairs, text = result.pairs
    assert [dict(pair.settings) for pair in pairs] == expected and text == note
    assert [pair.rows[0].runs[0].settings.get("model.dropout") for pair in pairs] == [
        pair.rows[1].runs[0].settings.get("model.dropout") for pair in pairs
    ] or "0.5" in str(b)
    adjusted = f"The tests are not adjusted for {len(pairs)} comparisons." in text_of(result.sections()[1].parts)
    assert adjusted == (len(pairs) > 1)


def test_the_files_show_both_curves(tmp_path):
    write_sweep(tmp_path / "a", seeds("model.dropout=0", (0.4, 0.6)))
    write_run(tmp_path / "b", ["seed=0"], accuracy=0.7, more=FACTS)
    row = dict.fromkeys(report.HISTORY_COLUMNS, 1) | {"phase": "scratch", "val_accuracy": 0.25}
    rows = [row | {"epoch": epoch, "loss": epoch} for epoch in range(1, 31)]
    report.write_history(tmp_path / "b" / "history.csv", rows)
    result, _ = diff.read([str(tmp_path / "a"), str(tmp_path / "b")])
    sections = result.sections()
    curves = rows_of(sections[2].parts)
    assert [int(row["epoch"]) for row in curves] == [1, 4, 7, 11, 14, 17, 20, 24, 27, 30]
    assert (curves[0]["A val accuracy"], curves[0]["B val accuracy"]) == ("0.5000", "0.2500")  # the mean of 0.4 and 0.6
    assert (curves[-1]["A loss"], curves[-1]["B loss"]) == ("–", "30.0000")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert command.write_diff(result, sections) == tmp_path / "a" / "diff_b"
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before.keys()
    assert {path.name for path in new} == {"diff_b.md", "diff_b.html", "diff_b.png"}
    markdown, page = ((tmp_path / "a" / f"diff_b.{kind}").read_text() for kind in ("md", "html"))
    assert "![Curves](figures/diff_b.png)" in markdown and "| 30 |" in markdown and "data:image/png" in page
    picture = np.asarray(Image.open(tmp_path / "a" / "figures" / "diff_b.png").convert("RGB"))
    assert all((picture == colour).all(-1).any() for colour in ((0x44, 0x77, 0xAA), (0xCC, 0x66, 0x77)))


def test_bad_input_is_a_sentence_and_writes_nothing(tmp_path):
    write_run(tmp_path / "a", ["seed=1"], more=FACTS)
    write_run(tmp_path / "stopped", ["seed=1"], status="stopped", more=FACTS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "report.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    cases = {
        ("--diff", "a"): "--diff: takes two folders",
        ("--diff", "a", "stopped", "empty"): "--diff: takes two folders",
        ("--diff", "a", "stopped", "--best"): "--diff: takes two folders",
        ("--watch", "a", "--diff"): "--watch: takes one folder and no other option",
        ("--diff", "a", "nowhere", "--write"): "nowhere: there is no such folder",
        (
            "a",
            "--diff",
            "empty",
            "--write",
        ): "empty: has no report.json or jobs.jsonl; give the folder of a run that has ended, or of a sweep",
        ("--diff", "a", "damaged", "--write"): "damaged: has no run that can be read; damaged/report.json: is damaged",
        ("--diff", "a", "./a"): "--diff: a and a are the same folder; give two",
    }
    outputs = refusals("report", [*map(list, cases), ["--diff", "a", "stopped"]], tmp_path)
    for (overrides, sentence), output in zip(cases.items(), outputs, strict=False):
        assert (output["code"], output["stdout"]) == (2, "") and sentence in output["stderr"], (overrides, output)
    # A run that was stopped is compared by what it has.
    assert outputs[-1]["code"] == 0 and "1 stopped" in outputs[-1]["stdout"] and not outputs[-1]["has_tensorflow"]
    assert sorted(tmp_path.rglob("*")) == before
