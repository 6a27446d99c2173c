"""Tables of many runs: found, grouped over seeds, ranked with ties, failures shown."""

import collections
import copy
import csv
import functools
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from plotly.offline import get_plotlyjs

from cifar_research import config
from cifar_research import report as command
from cifar_research.comparison import figures, ranking, runs, tables
from cifar_research.comparison.ranking import Comparison
from cifar_research.config.identity import option_names
from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.runs import report
from cifar_research.runs.ledger import Job
from cifar_research.runtime import locks
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.plan import Plan

pytestmark = pytest.mark.draws


@functools.cache
def composed(*overrides):
    whole = config.compose(list(overrides)).config
    return OmegaConf.to_container(OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"]), resolve=True)


def made(*overrides):
    """Return a config, composed once for all seeds."""
    seed = [int(word.removeprefix("seed=")) for word in overrides if word.startswith("seed=")]
    base = copy.deepcopy(composed(*(word for word in overrides if not word.startswith("seed="))))
    return base | {"seed": seed[-1]} if seed else base


def write_run(folder, overrides=(), *, accuracy=0.5, status="completed", base=None, changes=(), more=()):
    """Write the files of a run with this validation accuracy."""
    base = copy.deepcopy(base) if base else made(*overrides)
    for section, key, value in changes:
        (base[section] if section else base)[key] = value
    scores = {"loss": 1 - accuracy, "accuracy": accuracy}
    content = {
        "status": status, "config": base, "seed": base["seed"], "epochs": 2, "steps": 20, "best_epoch": 2,
        "train": scores, "val": scores, "test": scores if status == "completed" else None,
        "data": {"name": "x", "classes": ["a"], "sizes": {"train": 45000, "val": 5000, "test": 10000}},
        "seconds": {"total": 12.0},
    }  # fmt: skip
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: {overrides: {hydra: [hydra.run.dir=x]}}\n")
    report.write_report(folder / "report.json", content | dict(more))
    phases = list(base["training"]["phases"])
    row = dict.fromkeys(report.HISTORY_COLUMNS, 1) | {"phase": phases[0], "val_accuracy": accuracy}
    report.write_history(folder / "history.csv", [row, row | {"epoch": 2, "phase": phases[-1]}])


def write_transfer(folder, backbone, training, *, seed=0, accuracy=0.5, trainable=10, **options):
    """Write a run of a backbone, which has 1,000 parameters a letter of its name."""
    total = 1000 * len(backbone)
    more = {"parameters": {"total": total, "trainable": trainable}, "forward_flops": 2000 * total}
    overrides = [f"backbone={backbone}", f"training={training}", f"seed={seed}", *options.pop("overrides", ())]
    write_run(folder, overrides, accuracy=accuracy, more=more | options)


def table_of(*places):
    result, _ = runs.find([str(path) for path in places])
    header, *rows = tables.leaderboard_table(Comparison(result))
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_one_row_a_setting_with_interval_over_seeds(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.72, 0.71)):
        write_run(tmp_path / f"a{seed}", ["optimizer=sgd", f"seed={seed}"], accuracy=accuracy)
    write_run(tmp_path / "b", ["optimizer=adam", "optimizer.learning_rate=0.2"], accuracy=0.3)
    first, second = table_of(tmp_path)
    assert (first["optimizer"], first["rank"], first["n"], first["val accuracy"]) == ("sgd", "1", "3", "0.7100")
    assert first["val 95 %"] == "± 0.0248"  # 4.3027 x 0.01 / sqrt(3)
    assert (second["rank"], second["n"], second["optimizer"]) == ("2", "1", "adam")
    assert second["val 95 %"] == "[0.2875, 0.3129]"  # Wilson's, of 5,000 images
    # A key of one optimizer only, or equal in all runs, is not a column.
    assert not {"momentum", "beta_1", "learning_rate", "seed", "batch_size"} & first.keys()


def test_folds_are_one_row_with_their_correction(tmp_path):
    for seed in range(2):
        for fold, accuracy in enumerate((0.70, 0.72, 0.71)):
            overrides = ["optimizer=sgd", f"seed={seed}", "data.folds=3", f"data.fold={fold}"]
            write_run(tmp_path / f"{seed}{fold}", overrides, accuracy=accuracy + seed / 100)
    write_run(tmp_path / "other", ["optimizer=adam", "data.folds=3", "data.fold=1"], accuracy=0.3)
    first, second = table_of(tmp_path)
    assert (first["n"], first["val accuracy"], second["n"]) == ("6", "0.7150", "1")
    # 2.5706 x 0.0105 x sqrt(1 / 6 + 5,000 / 45,000)
    assert first["val 95 %"] == "± 0.0142"
    assert not {"fold", "seed"} & first.keys()
    comparison = Comparison(runs.find([str(tmp_path)])[0])
    assert comparison.effects["optimizer"]["sgd"].half_width("val/accuracy") == pytest.approx(0.0142, abs=1e-4)
    cells = dict(zip(*tables.leaderboard_csv(comparison)[:2], strict=True))
    assert cells["interval"] == "folds"
    assert "Nadeau and Bengio (2003)" in command.summary(comparison)


def test_a_tie_with_a_row_over_folds_has_the_correction_whichever_is_better(tmp_path):
    folds, seeds = (0.77, 0.80, 0.83), (0.71, 0.73, 0.75)
    for name, of_folds, of_seeds in (("first", folds, seeds), ("second", seeds, folds)):
        for number, (fold, seed) in enumerate(zip(of_folds, of_seeds, strict=True)):
            write_run(tmp_path / name / f"fold{number}", ["data.folds=3", f"data.fold={number}"], accuracy=fold)
            write_run(tmp_path / name / f"seed{number}", [f"seed={number}"], accuracy=seed)
    ties = [[row["rank"] for row in table_of(tmp_path / name)] for name in ("first", "second")]
    assert ties[0] == ties[1]


def test_a_run_that_repeats_another_is_no_further_seed(tmp_path):
    for name, seed, accuracy in (("a", 0, 0.6), ("b", 1, 0.8), ("c", 1, 0.7)):
        write_run(tmp_path / name, [f"seed={seed}"], accuracy=accuracy)
    (row,) = table_of(tmp_path)
    assert (row["n"], row["val accuracy"]) == ("2", "0.6500")


def test_other_images_are_another_row(tmp_path):
    for seed, path in enumerate(("pets", "flowers")):
        write_run(tmp_path / path, ["data=images", f"data.dir={path}", f"seed={seed}"])
    assert sorted(row["dir"] for row in table_of(tmp_path)) == ["flowers", "pets"]
    for seed, fingerprint in enumerate("ab"):
        data = {"name": "x", "fingerprint": fingerprint, "sizes": {"val": 5000, "test": 10000}}
        write_run(tmp_path / "cifar" / fingerprint, [f"seed={seed}"], more={"data": data})
    assert sorted(row["images"] for row in table_of(tmp_path / "cifar")) == ["a", "b"]
    for path, is_noted in ((tmp_path / "cifar", True), (tmp_path / "cifar" / "a", False)):
        result, _ = runs.find([str(path)])
        assert ("The runs used different images" in command.summary(Comparison(result))) is is_noted
    for fingerprint in "ab":  # a folder for each data set, which the table does not show
        data = {"name": "x", "fingerprint": fingerprint, "sizes": {"val": 5000, "test": 10000}}
        write_run(tmp_path / "two" / fingerprint, ["seed=0", f"data.dir={fingerprint}"], more={"data": data})
    assert sorted(row["images"] for row in table_of(tmp_path / "two")) == ["a", "b"]


def test_the_keys_of_an_option_distinguish_runs(tmp_path):
    overrides = ["experiment=transfer", "backbone=mobilenet_v2", "training=fine_tuning"]
    for upper, accuracy in (("block_16_expand", 0.9), ("block_15_expand", 0.6)):
        write_run(tmp_path / "upper" / upper, [*overrides, f"backbone.upper_blocks={upper}"], accuracy=accuracy)
    rows = table_of(tmp_path / "upper")
    assert [(row["upper_blocks"], row["val accuracy"]) for row in rows] == [
        ("block_16_expand", "0.9000"), ("block_15_expand", "0.6000"),
    ]  # fmt: skip
    for module in ("one", "other"):  # their factories have the same name
        write_run(tmp_path / "own" / module, changes=[("backbone", "_target_", f"{module}.net")])
    assert sorted(row["backbone"] for row in table_of(tmp_path / "own")) == ["one.net", "other.net"]


def test_runs_without_validation_are_one_row_and_written(tmp_path):
    for rate in (1, 2):
        for seed, accuracy in enumerate((0.7, 0.8)):
            scores = {"loss": 1.0, "accuracy": accuracy}
            overrides = [f"seed={seed}", f"optimizer.learning_rate={rate}", "data.val_fraction=0"]
            write_run(tmp_path / f"{rate}{seed}", overrides, more={"val": None, "test": scores})
    rows = table_of(tmp_path)
    assert [(row["rank"], row["n"], row["val accuracy"], row["test accuracy"]) for row in rows] == [
        ("–", "2", "–", "0.7500")
    ] * 2
    command.write(tmp_path, Comparison(runs.find([str(tmp_path)])[0]))
    assert "0.7500" in (tmp_path / "leaderboard.md").read_text()


def test_ties_are_marked_by_seeds_and_by_images(tmp_path):
    def group(name, values, rate):
        for seed, accuracy in enumerate(values):
            overrides = [f"seed={seed}", f"optimizer.learning_rate={rate}"]
            write_run(tmp_path / f"{name}{seed}", overrides, accuracy=accuracy)

    group("best", (0.80, 0.82, 0.84), 0.1)
    group("noisy", (0.90, 0.70, 0.77), 0.2)  # a distant mean, and a large spread
    group("near", (0.795, 0.815, 0.835), 0.3)  # below by a constant, within the noise of 5,000 images
    group("below", (0.75, 0.77, 0.79), 0.4)
    assert [(row["learning_rate"], row["rank"]) for row in table_of(tmp_path)] == [
        ("0.1", "1"),
        ("0.3", "1 ="),
        ("0.2", "1 ="),
        ("0.4", "4"),
    ]


def test_one_run_each_is_held_against_the_images_alone(tmp_path):
    for accuracy, rate in ((0.80, 1), (0.79, 2), (0.77, 3)):
        write_run(tmp_path / str(rate), [f"optimizer.learning_rate={rate}"], accuracy=accuracy)
    assert [row["rank"] for row in table_of(tmp_path)] == ["1", "1 =", "3"]


def test_failed_diverged_and_pruned_are_rows(tmp_path):
    write_run(tmp_path / "fine", ["seed=1"], accuracy=0.5)
    write_run(tmp_path / "bad", ["seed=1", "optimizer.learning_rate=9"], status="diverged")
    write_run(tmp_path / "weak", ["seed=1", "optimizer.learning_rate=8"], accuracy=0.9, status="pruned")
    planned = [
        Job("dead", ["optimizer.learning_rate=7"], made("optimizer.learning_rate=7"), "failed", "killed by X"),
        Job("fine", ["seed=1"], made("seed=1"), "running"),
        Job("old", ["seed=5"], made("seed=5"), "failed", "gone", is_planned=False),
    ]
    Ledger(tmp_path, [], planned).write()
    result = {row["learning_rate"]: (row["rank"], row["state"]) for row in table_of(tmp_path)}
    assert result == {
        "0.005": ("1", "completed"),
        "9": ("–", "diverged"),
        "8": ("–", "pruned"),
        "7": ("–", "failed: killed by X"),
    }


def test_waiting_jobs_that_differ_in_their_seed_are_one_row(tmp_path):
    arguments = [["optimizer=adam", f"seed={seed}"] for seed in (0, 1)]
    jobs = [Job(str(seed), overrides, made(*overrides), "waiting") for seed, overrides in enumerate(arguments)]
    Ledger(tmp_path, [], [*jobs, Job("2", ["seed=2"], made("seed=2"), "running")]).write()
    assert [(row["n"], row["state"]) for row in table_of(tmp_path)] == [("2", "waiting"), ("1", "stopped")]
    assert call(tmp_path).stdout.endswith(f"Next: scripts/train resume={tmp_path}\n")
    (tmp_path / "slurm").mkdir()  # its jobs may run without the sweep
    assert [row["state"] for row in table_of(tmp_path)] == ["waiting", "running"]
    (tmp_path / "slurm").rmdir()
    with locks.only_process_in(tmp_path, key="hydra.sweep.dir", what="sweep runs"):
        assert [row["state"] for row in table_of(tmp_path)] == ["waiting", "running"]
        assert "resume=" not in call(tmp_path).stdout


def test_augmentations_and_plugins_have_their_names(tmp_path):
    write_run(tmp_path / "a", ["augmentation=slides", "loss=mean_squared_error"])
    write_run(tmp_path / "b", ["augmentation=none", "loss=categorical_crossentropy"])
    write_run(tmp_path / "c", ["augmentation=slides", "augmentation.rotation.degrees=30"])
    rows = table_of(tmp_path / "[abc]")
    assert {row["augmentation"] for row in rows} == {"none", "rotation+horizontal_flip+vertical_flip+shift"}
    assert {row["loss"] for row in rows} == {"mean_squared_error", "categorical_crossentropy"}
    assert {row["degrees"] for row in rows} == {"15", "30", "–"}


def write_option(folder, overrides, **options):
    write_run(folder, overrides, more={"options": options})


def test_options_have_the_names_that_were_typed(tmp_path):
    for flip in ("none", "flip"):
        write_option(tmp_path / flip, [f"augmentation={flip}"], augmentation=flip, model="first_version")
    write_option(tmp_path / "wide", ["augmentation=flip", "model=wide"], augmentation="flip", model="wide")
    planned = [Job(name, overrides, made(*overrides), "failed") for name, overrides in (
        ("none", ["augmentation=none"]), ("dead", ["augmentation=slides"]))]  # fmt: skip
    Ledger(tmp_path, [], planned).write()
    result, _ = runs.find([str(tmp_path)])
    assert {(run.settings["augmentation"], run.settings["model"]) for run in result} == {
        ("none", "head"), ("flip", "head"), ("slides", "head"),
    }  # fmt: skip
    planned[1].overrides.append("model=first_version")
    Ledger(tmp_path, [], planned).write()
    assert [(row["augmentation"], row["model"]) for row in table_of(tmp_path)] == [
        ("none", "first_version"), ("flip", "first_version"), ("flip", "wide"), ("slides", "first_version"),
    ]  # fmt: skip
    assert "hidden" not in table_of(tmp_path)[0]  # which the option brings with it


@pytest.mark.parametrize("more", [["~augmentation.horizontal_flip"], ["+augmentation.mirror={_target_: a.b}"]])
def test_an_option_that_was_changed_is_named_by_its_transforms(tmp_path, more):
    write_option(tmp_path / "a", ["augmentation=flip"], augmentation="flip")
    write_option(tmp_path / "b", ["augmentation=flip", *more], augmentation="flip")
    assert {row["augmentation"] for row in table_of(tmp_path)} > {"horizontal_flip"}


@pytest.mark.parametrize(
    ("choices", "names"),
    [
        ({"augmentation": "flip", "seed": "1", "model": None}, {"augmentation": "flip"}),
        (
            {"augmentation": ["flip", "cutout"], "training": "combined"},
            {"augmentation": "flip+cutout", "training": "combined"},
        ),
        (OmegaConf.create({"model": "wide", "sweep": None}), {"model": "wide"}),
        (["augmentation=[flip,cutout]", "seed=1", "+model={a: 1}", "~loss"], {"augmentation": "flip+cutout"}),
        (None, {}),
    ],
)
def test_names_of_options(choices, names):
    assert option_names(choices) == names


def test_the_csv_has_a_number_a_column(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.72, 0.71)):
        write_run(tmp_path / f"a{seed}", ["model.hidden=[8, 8]", f"seed={seed}"], accuracy=accuracy)
    write_run(tmp_path / "b", ["backbone.batch_norm=true"], accuracy=0.7095)
    write_run(tmp_path / "c", ["model.dropout=0.5"], accuracy=0.9, status="diverged")
    for seed in (0, 1):
        write_run(tmp_path / f"d{seed}", [f"seed={seed}", "model.dropout=0.25"], accuracy=0.5)
    command.write(tmp_path, Comparison(runs.find([str(tmp_path)])[0]))
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines()))
    for row in rows:
        for name in row.keys() - {"is_tie", "backbone.batch_norm", "model.hidden", "interval", "state", "reason"}:
            assert row[name] == "" or math.isfinite(float(row[name])), name
    first, tie, equal, failed = rows
    assert (first["rank"], first["is_tie"], first["n"], first["interval"]) == ("1", "false", "3", "seeds")
    assert first["val_accuracy"] == "0.71" and float(first["val_low"]) == pytest.approx(0.71 - 0.0248, abs=1e-4)
    assert json.loads(first["model.hidden"]) == [8, 8] and first["backbone.batch_norm"] == "false"
    assert (tie["rank"], tie["is_tie"], tie["n"], tie["interval"]) == ("1", "true", "1", "images")
    assert float(tie["test_high"]) > float(tie["test_accuracy"]) > float(tie["test_low"])
    assert (equal["val_accuracy"], equal["val_low"], equal["val_high"]) == ("0.5", "", "")
    assert (failed["rank"], failed["is_tie"], failed["test_accuracy"], failed["state"]) == ("", "", "", "diverged")
    assert (
        "«no spread»" in (tmp_path / "report.html").read_text()
        and "no spread" in (tmp_path / "leaderboard.md").read_text()
    )


@pytest.mark.parametrize(
    ("seeds", "is_said"), [([[0], [0]], True), ([[0, 1], [0]], True), ([[0, 1], [0, 1]], False), ([[0]], False)]
)
def test_single_seeds_are_reported_as_no_ranking_of_settings(tmp_path, seeds, is_said):
    for path, of in enumerate(seeds):
        for seed in of:
            write_run(
                tmp_path / f"{path}{seed}", [f"seed={seed}", f"model.dropout={path / 2}"], accuracy=0.5 + path / 4
            )
    result, _ = runs.find([str(tmp_path)])
    command.write(tmp_path, Comparison(result))
    for text in (
        command.summary(Comparison(result)),
        *((tmp_path / name).read_text() for name in ("leaderboard.md", "report.html")),
    ):
        assert ("Another seed gives another accuracy" in text) is is_said


def test_main_effects(tmp_path):
    for seed, rate, accuracy in ((0, 0.1, 0.4), (1, 0.1, 0.6), (0, 0.2, 0.7), (1, 0.2, 0.7)):
        overrides = [f"seed={seed}", f"optimizer.learning_rate={rate}"]
        write_run(tmp_path / f"{seed}{rate}", overrides, accuracy=accuracy)
    result = Comparison(runs.find([str(tmp_path)])[0]).effects
    low, high = (result["optimizer.learning_rate"][rate] for rate in ("0.1", "0.2"))
    assert [low.mean("val/accuracy"), high.mean("val/accuracy")] == pytest.approx([0.5, 0.7])
    assert low.half_width("val/accuracy") == pytest.approx(12.706 * 0.1, rel=1e-3) and len(low.runs) == 2
    assert math.isnan(high.half_width("val/accuracy"))  # all runs at 0.2 are equal
    assert tables.effects_table(Comparison(runs.find([str(tmp_path)])[0]))[1][-1] == "no spread"


def test_the_studys_grid_stands_beside_the_study(tmp_path):
    overrides = ["sweep=hyperparameters"]
    jobs = list(Plan.of(parse_sweep(overrides)).grid())
    for i, job in enumerate(jobs):
        write_run(tmp_path / job.folder, job.overrides, base=job.config, accuracy=0.5 + i / 100)
    result, _ = runs.find([str(tmp_path)])
    header, *rows = tables.study_table(Comparison(result))
    assert len(rows) == 24 and header[5:9] == ["ACC", "VAL_ACC", "LOSS_VALUE", "VAL_LOSS"]
    assert rows[0][:5] == ["categorical_crossentropy", "0.005", "0.3", "adam", "max"]
    assert [row[6] for row in rows] == [f"{0.5 + i / 100:.4f}" for i in range(24)]
    best = max(rows, key=lambda row: float(row[11]))
    assert best[:5] == ["mean_squared_error", "0.001", "0.3", "adam", "avg"] and best[10:] == [
        "0.9796", "0.8329", "0.0033", "0.0268",
    ]  # fmt: skip
    assert tables.study_table(Comparison(result[:5]))[6][6] == "–"  # a job that is missing
    command.write(tmp_path, Comparison(result))
    assert "## Beside the study" in (tmp_path / "leaderboard.md").read_text()
    for path, more in enumerate((["data=synthetic"], ["backbone.batch_norm=false"], ["data.train_size=500"])):
        write_run(tmp_path / "others" / str(path), [*jobs[0].overrides, *more])
        assert tables.study_table(Comparison(runs.find([str(tmp_path / "others" / str(path))])[0])) is None


def call(*overrides, code=0):
    done = subprocess.run([sys.executable, "-m", "cifar_research.report", *overrides], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done


def test_files_are_written_and_read_back(tmp_path):
    for i, rate in enumerate((0.1, 0.2, 0.3)):
        for seed in (0, 1):
            for dropout in (0.0, 0.5):
                overrides = [f"seed={seed}", f"optimizer.learning_rate={rate}", f"model.dropout={dropout}"]
                write_run(
                    tmp_path / f"{i}{seed}{dropout}", overrides, accuracy=0.5 + i / 10 + seed / 100 + dropout / 50
                )
    shown = call(str(tmp_path), "--write").stdout
    header, *rows = csv.reader((tmp_path / "leaderboard.csv").read_text().splitlines())
    assert len(rows) == 6 and dict(zip(header, rows[0], strict=True))["optimizer.learning_rate"] == "0.3"
    markdown = (tmp_path / "leaderboard.md").read_text()
    assert "## Main effects" in markdown and "0.7150" in markdown and "rank" in shown
    assert rows[0][header.index("val_accuracy")] == "0.715"
    page = (tmp_path / "report.html").read_text()
    own = page.replace(get_plotlyjs(), "")
    assert not re.search(r"(src|href)=|https?://|@import", own)  # opens without a network
    assert own.count('<div class="figure"') == 4 and "parcoords" in own and "<th>learning_rate</th>" in own
    (picture,) = (tmp_path / "figures").iterdir()
    assert picture.name == "parallel_coordinates.png" and np.asarray(Image.open(picture).convert("L")).std() > 5


def test_backbones_and_techniques_have_pictures(tmp_path):
    for backbone in ("vgg16", "resnet50"):
        for training in ("feature_extraction", "combined"):
            for seed in (0, 1):
                folder = tmp_path / f"{backbone}{training}{seed}"
                write_transfer(folder, backbone, training, seed=seed, accuracy=0.6 + seed / 100)
    write_run(tmp_path / "cnn")  # has no size, as in older reports
    (tmp_path / "cnn" / "history.csv").unlink()
    result, _ = runs.find([str(tmp_path)])
    command.write(tmp_path, Comparison(result))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"backbones.png", "parallel_coordinates.png"}
    assert np.asarray(Image.open(tmp_path / "figures" / "backbones.png").convert("L")).std() > 5
    own = (tmp_path / "report.html").read_text().replace(get_plotlyjs(), "")
    assert "<h2>Backbones" in own and "<h2>Techniques" in own and '<img alt="Backbones' in own
    assert own.count('"label":{"text":"backbone"') == 2  # a phase of `combined`, once a panel


def test_one_backbone_and_technique_have_no_pictures(tmp_path):
    for seed in (0, 1):
        write_transfer(tmp_path / str(seed), "vgg16", "combined", seed=seed)
    write_run(tmp_path / "other", ["backbone=cnn"], status="diverged")
    command.write(tmp_path, Comparison(runs.find([str(tmp_path)])[0]))
    assert not (tmp_path / "figures" / "backbones.png").exists()
    assert "<h2>Backbones" not in (own := (tmp_path / "report.html").read_text()) and "<h2>Techniques" not in own
    write_transfer(tmp_path / "head", "vgg16", "feature_extraction")
    command.write(tmp_path, Comparison(runs.find([str(tmp_path)])[0]))
    assert "<h2>Techniques" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "figures" / "backbones.png").exists()


def test_pictures_without_sizes_and_histories(tmp_path):
    write_run(tmp_path / "a", ["backbone=vgg16", "training=combined"])
    write_run(tmp_path / "b", ["backbone=cnn"])
    for name in "ab":
        (tmp_path / name / "history.csv").unlink()
    command.write(tmp_path, Comparison(runs.find([str(tmp_path)])[0]))
    assert (tmp_path / "figures" / "backbones.png").is_file()
    assert "<h2>Techniques" in (tmp_path / "report.html").read_text()


def test_a_bar_is_the_best_row_of_its_backbone_and_technique(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.72, 0.71)):
        more = {"seed": seed, "accuracy": accuracy, "seconds": {"total": seed}}
        write_transfer(tmp_path / f"a{seed}", "vgg16", "combined", **more)
    write_transfer(tmp_path / "low", "vgg16", "combined", accuracy=0.3, overrides=["optimizer.learning_rate=0.2"])
    write_transfer(tmp_path / "one", "vgg16", "feature_extraction", accuracy=0.3)
    (head, both) = (best := Comparison(runs.find([str(tmp_path)])[0]).best_rows).values()
    assert list(best) == [("feature extraction", "VGG16"), ("combined", "VGG16")]
    assert both.bounds("test/accuracy") == pytest.approx((0.71 - 0.0248, 0.71 + 0.0248), abs=1e-4)
    assert (both.mean("seconds/total"), both.runs[0].sizes["parameters"]) == (1, 5000)
    assert head.bounds("test/accuracy") == pytest.approx((0.2911, 0.3091), abs=1e-4)  # Wilson's, of 10,000 images
    write_transfer(tmp_path / "cnn", "cnn", "scratch", accuracy=0.4, test=None)
    best = Comparison(runs.find([str(tmp_path)])[0]).best_rows
    assert {name for name, _ in best} == {"from scratch", "feature extraction", "combined"}
    axes = figures.draw_backbones(best, dict.fromkeys((name for name, _ in best), "black")).axes[0]
    (bar,) = (bar for bar in axes.containers if bar.get_label() == "combined" and bar.errorbar)
    assert bar.datavalues == pytest.approx([0.71])
    (line,) = bar.errorbar.lines[2][0].get_segments()
    assert line[:, 1] == pytest.approx([0.71 - 0.0248, 0.71 + 0.0248], abs=1e-4)
    assert axes.get_ylabel() == "validation accuracy, 95 % interval"


def history(*phases, accuracies=(0.5,) * 9):
    named = zip(phases, accuracies, strict=False)
    return [{"epoch": i, "phase": phase, "val_accuracy": accuracy} for i, (phase, accuracy) in enumerate(named, 1)]


def test_phases_begin_where_the_history_changes():
    one = history("head", "head", "backbone", "backbone", "all")
    assert figures.phase_changes(one) == [(3, "backbone"), (5, "all")]
    assert figures.phase_changes(history("scratch", "scratch")) == figures.phase_changes([]) == []
    # Two runs that changed at different times.
    both = map(figures.curve, [history("head", "head", "head", "backbone"), history("head", "head", "backbone")])
    assert figures.phase_starts(both) == {"backbone": 3}


def test_a_mean_curve_ends_with_the_first_run():
    both = [history(*"aaa", accuracies=(0.1, 0.2, 0.9)), history(*"aa", accuracies=(0.3, None))]
    epochs, values = figures.mean_curve([*map(figures.curve, both)])
    assert epochs == [1, 2] and values == pytest.approx([0.2, float("nan")], nan_ok=True)


def test_sizes_are_columns_where_they_differ(tmp_path):
    write_transfer(tmp_path / "a", "vgg16", "combined", accuracy=0.6)
    write_transfer(tmp_path / "b", "vgg16", "combined", overrides=["optimizer.learning_rate=0.2"])
    (row, _) = table_of(tmp_path)
    assert not {"parameters", "trainable", "MFLOP"} & row.keys()
    write_transfer(tmp_path / "c", "vgg16", "feature_extraction", accuracy=0.4, trainable=5)
    assert [row["trainable"] for row in table_of(tmp_path)] == ["10", "10", "5"]
    assert not {"parameters", "MFLOP"} & table_of(tmp_path)[0].keys()
    write_transfer(tmp_path / "d", "resnet50", "combined", accuracy=0.3)
    write_run(tmp_path / "e", ["backbone=cnn"], accuracy=0.2)
    # What a waiting or running job will have is not known yet, and no difference.
    Ledger(tmp_path / "a", [], [Job("next", ["seed=3"], made("seed=3"), "waiting")]).write()
    assert not {"parameters", "trainable", "MFLOP"} & table_of(tmp_path / "a")[0].keys()
    (tmp_path / "a" / "jobs.jsonl").unlink()
    result = [(row["parameters"], row["trainable"], row["MFLOP"]) for row in table_of(tmp_path)]
    assert result == [("5000", "10", "10.0")] * 2 + [("5000", "5", "10.0"), ("8000", "10", "16.0"), ("–", "–", "–")]


def test_names_are_text_in_the_page(tmp_path):
    for i, name in enumerate(("</script><b>$x", "b")):
        write_run(tmp_path / str(i), [f"seed={i}"], changes=[("", "name", name), ("model", "activation", name)])
    result, _ = runs.find([str(tmp_path)])
    command.write(tmp_path, Comparison(result))
    own = (tmp_path / "report.html").read_text().replace(get_plotlyjs(), "")
    assert "<b>" not in own and "&lt;b&gt;$x" in own


def test_best_prints_its_command(tmp_path):
    write_run(tmp_path / "a", ["optimizer=sgd", "model.hidden=[8, 8]"], accuracy=0.6)
    write_run(tmp_path / "b", ["optimizer=adam"], accuracy=0.5)
    best = call(str(tmp_path), "--best")
    assert best.stdout == "scripts/train optimizer=sgd 'model.hidden=[8, 8]'\n"
    assert best.stderr == ""
    # The folder of its options is part of the command.
    (tmp_path / "a" / ".hydra" / "hydra.yaml").write_text(
        "hydra: {overrides: {hydra: ['hydra.searchpath=[file://x]']}}\n"
    )
    assert call(str(tmp_path), "--best", "--write").stdout.endswith(" 'hydra.searchpath=[file://x]'\n")
    assert (tmp_path / "leaderboard.csv").exists()
    # What a sweep has added to a job's overrides is shown once, and of several values the last counts.
    write_run(tmp_path / "e", ["seed=1", "optimizer=sgd", "optimizer=lion", "seed=1"], accuracy=0.9)
    assert call(str(tmp_path), "--best").stdout == "scripts/train optimizer=sgd optimizer=lion seed=1\n"
    write_run(tmp_path / "c" / "d", ["optimizer=adam"], status="diverged")
    assert "no completed run has" in call(str(tmp_path / "c"), "--best", code=2).stderr


def test_bad_places_and_damaged_reports(tmp_path):
    assert "no such folder" in call(str(tmp_path / "nowhere"), code=2).stderr
    assert "no report.json" in call(str(tmp_path), code=2).stderr
    write_run(tmp_path / "a", ["seed=1"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "report.json").write_text('{"status": "comp')
    done = call(str(tmp_path))
    assert "b/report.json: is damaged" in done.stderr and "completed" in done.stdout
    (tmp_path / "jobs.jsonl").write_text("{")
    assert "jobs.jsonl: is damaged" in call(str(tmp_path)).stderr


def test_five_hundred_runs_need_no_tensorflow(tmp_path):
    base = made()
    for i in range(500):
        changes = [("", "seed", i % 5), ("optimizer", "learning_rate", 0.001 * (i // 5 + 1))]
        write_run(tmp_path / str(i), base=base, accuracy=0.5 + i / 2000, changes=changes)
    code = (
        "import sys; from cifar_research import report; "
        f"sys.argv = ['', {str(tmp_path / '0')!r}, '--best']; report.main(); assert 'scipy' not in sys.modules; "
        f"sys.argv = ['', {str(tmp_path)!r}]; report.main(); "
        "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if " completed" in line]) == 100


def test_a_large_page_has_the_best_rows_and_counts_the_others(tmp_path):
    base = made()
    for i in range(125):
        changes = [("optimizer", "learning_rate", 0.001 * (i // 5 + 1)), ("model", "dropout", 0.1 * (i % 5))]
        status = "diverged" if i < 3 else "completed"
        write_run(tmp_path / str(i), base=base, accuracy=0.5 + i / 2000, changes=changes, status=status)
    shown = call(str(tmp_path), "--write").stdout
    page, markdown = ((tmp_path / name).read_text() for name in ("report.html", "leaderboard.md"))
    note = "The first 100 of 125 rows. leaderboard.csv also has the others: 22 completed, 3 diverged."
    effects = "learning_rate: the best 20 of 25 values. scripts/report prints all."
    for text in (page, markdown):
        assert note in text and effects in text and "dropout: the best" not in text
    assert page.count("<tr>") == (1 + 100) + (1 + 20 + 5)
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 1 + 125
    assert note not in shown and shown.count(" diverged") == 3
    # Nothing is remembered of a run whose report has changed.
    (tmp_path / "124" / "report.json").unlink()
    (tmp_path / "124" / "history.csv").unlink()
    write_run(tmp_path / "124" / "again", base=base, accuracy=0.9, changes=changes)
    assert "0.9000" in call(str(tmp_path), "--write").stdout.splitlines()[1]


def test_techniques_have_twenty_thin_curves_behind_the_mean_of_all():
    rows = [history(*"ab", accuracies=(i / 100, i / 50)) for i in range(30)]
    drawn = [figures.curve(each) for each in rows]
    run = collections.namedtuple("Run", "settings config history")
    runs_of = [
        run({"backbone": "cnn"}, {"training": {"phases": [phase]}}, lambda each=each: each)
        for phase in ("head", "backbone")
        for each in rows
    ]
    figure = figures._techniques(runs_of, {"feature extraction": "#000", "fine-tuning": "#fff"})
    assert [trace.line.width for trace in figure.data] == [1] * 40 + [3] * 2
    assert figure.data[-1].y == pytest.approx(np.mean([each.values for each in drawn], axis=0))


def test_a_row_of_many_seeds_has_one_entry_in_the_legend(tmp_path):
    for seed in range(12):
        write_run(tmp_path / str(seed), [f"seed={seed}"])
    write_run(tmp_path / "other", ["optimizer=sgd"], accuracy=0.4)
    figure = figures._curves(Comparison(runs.find([str(tmp_path)])[0]))
    shown = [trace.name.rpartition(", ")[2] for trace in figure.data if trace.showlegend]
    assert len(figure.data) == 11 and shown == ["10 of 12 runs", "seed 0"]


def test_all_weights_from_pretrained_ones_are_not_from_scratch(tmp_path):
    write_transfer(tmp_path / "a", "vgg16", "scratch", overrides=["backbone.weights=some/run"])
    write_transfer(tmp_path / "b", "vgg16", "scratch", overrides=["backbone.weights=none"])
    result, _ = runs.find([str(tmp_path)])
    assert [ranking.technique(run) for run in result] == ["all weights", "from scratch"]


def test_folds_that_wait_are_one_row(tmp_path):
    write_run(tmp_path / "0", ["data.folds=3"], accuracy=0.5)
    rows = [[f"data.fold={fold}", "data.folds=3"] for fold in range(3)]
    jobs = [Job(str(fold), row, made(*row), "waiting" if fold else "completed") for fold, row in enumerate(rows)]
    Ledger(tmp_path, [], jobs).write()
    assert [(row["n"], row["state"]) for row in table_of(tmp_path)] == [("1", "completed"), ("2", "waiting")]


def test_copies_that_a_tracker_keeps_are_no_runs(tmp_path):
    write_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "run" / "wandb" / "offline-run-1" / "files")
    assert [run.folder for run in runs.find([str(tmp_path)])[0]] == [tmp_path / "run"]


ON_TEST, OTHER_LOSSES = "chose their best epoch by the test images", "have different losses"


@pytest.mark.parametrize(
    ("words", "shared", "expected"),
    [
        (["loss=focal", "loss=mean_squared_error"], "training.monitor=loss", [OTHER_LOSSES]),
        (["loss.label_smoothing=0", "loss.label_smoothing=0.1"], "training.monitor=loss", [OTHER_LOSSES]),
        (["loss.label_smoothing=0", "loss.label_smoothing=0.1"], "training.monitor=accuracy", []),
        (["loss.class_weights=none", "loss.class_weights=balanced"], "training.monitor=loss", []),
        (["loss=logit_adjusted", "loss=balanced_softmax"], "training.monitor=loss", []),
        (["loss=logit_adjusted", "loss=categorical_crossentropy"], "training.monitor=loss", []),
        (["optimizer=adam", "optimizer=sgd"], "data.validation=test", [ON_TEST]),
    ],
)
def test_ranks_that_mean_less_are_said_to_do_so(tmp_path, words, shared, expected):
    for number, word in enumerate(words):
        write_run(tmp_path / str(number), [word, shared], accuracy=0.5 + number / 10)
    comparison = Comparison(runs.find([str(tmp_path)])[0])
    notes = command.summary(comparison)
    assert [text for text in (ON_TEST, OTHER_LOSSES) if text in notes] == expected


@pytest.mark.parametrize(("num_seeds", "is_said"), [(1, True), (2, False)])
def test_the_report_says_what_one_seed_cannot_show(num_seeds, is_said, tmp_path):
    for rate in (0.1, 0.2):
        for seed in range(num_seeds):
            overrides = [f"optimizer.learning_rate={rate}", f"seed={seed}"]
            write_run(tmp_path / f"{rate}-{seed}", overrides, accuracy=0.5 + rate + 0.01 * seed)
    result, _ = runs.find([str(tmp_path)])
    notes = " ".join(str(section) for section in command._sections(Comparison(result)))
    assert ("resume=<sweep> seed=0,1,2,3,4" in notes) == is_said
