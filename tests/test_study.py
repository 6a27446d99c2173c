"""The study's page: trained by sections, continued, its tables and claims computed from runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest

pytestmark = pytest.mark.draws
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "study.md"
TINY = [
    "data=synthetic", "data.train_images=64", "data.test_images=32", "data.train_size=48",
    "backbone.filters=[2]", "model.hidden=[4]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def slides(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "slides")
    yield
    for name in ("page", "sections", "study"):
        sys.modules.pop(name, None)


@pytest.fixture
def run_study(monkeypatch, capsys):
    """A function that runs scripts/study here, its sweeps as forks, and returns (exit code, output)."""
    import study

    def train(command, check):
        done = forked.run(command[3:], module=command[2])
        print(done.stdout, done.stderr)
        return done

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=train))

    def run_study(*arguments):
        monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
        try:
            code = study.main()
        except SystemExit as ended:
            code = ended.code
        return code, "".join(capsys.readouterr())

    return run_study


def test_sections_are_trained_once_and_written_to_the_page(tmp_path, run_study):
    arguments = [tmp_path, "--quick", "--sections", "first", *TINY]
    code, output = run_study(*arguments)
    assert code == 0, output[-2000:]
    text, rows = (tmp_path / "study.md").read_text(), (tmp_path / "study.csv").read_text()
    assert re.search(r"\| `experiment=dropout` \|  \| [\d.]+( ± [\d.]+)? \| [\d.]+( ± [\d.]+)? \| 2 \| 1 \|", text)
    assert re.search(r"\| dropout helps \| -?[\d.]+( ± [\d.]+)? \| 2 \| (confirmed|refuted|undecided) \|", text)
    assert len(rows.splitlines()) == 5 and (tmp_path / "study.png").stat().st_size > 1000
    assert [path.name for path in tmp_path.glob("study_*.png")] == ["study_first.png"]  # its curves
    (tmp_path / "grid").mkdir()  # of a sweep that was killed before a run ended
    code, output = run_study(*arguments)
    assert code == 0 and "4 of 4 jobs are complete" in output
    assert (tmp_path / "study.csv").read_text() == rows


def test_a_command_that_is_refused_writes_nothing(tmp_path, run_study):
    code, output = run_study(tmp_path / "new", "--quick", "--sections", "first", *TINY, "training.batch_size=0")
    assert code == 2 and "error: training.batch_size" in output and not (tmp_path / "new").exists()


def test_failed_jobs_are_named_and_the_page_is_written(tmp_path, monkeypatch, capsys):
    import study as command

    monkeypatch.setattr(command, "train", lambda section, *_, **__: int(section.name == "grid"))
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path)])
    assert command.main() == 1
    assert "error: grid: some of its jobs failed" in capsys.readouterr().err
    assert "Not measured yet." in (tmp_path / "study.md").read_text()


def test_a_section_that_does_not_exist_is_refused(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "slides" / "study.py", tmp_path / "new", "--sections", "first,secnd"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "'secnd'" in done.stderr and not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [["--quick"], ["training.epochs=1", "training.precision=bfloat16"]])
def test_only_results_of_the_pages_commands_are_published(tmp_path, run_study, arguments):
    code, output = run_study(tmp_path / "new", "--publish", *arguments)
    assert code == 2 and "--publish: only" in output and not (tmp_path / "new").exists()
    assert "training.precision" not in output


def test_the_page_in_docs_has_the_published_results_and_each_sections_command():
    import page
    from sections import SECTIONS
    from study import read

    text = PAGE.read_text()
    assert page.render(text, read(ROOT / "docs" / "results" / "study.csv")) == text, "run scripts/study --publish"
    commands = {frozenset(shlex.split(line)[1:]) for line in text.splitlines() if line.startswith("scripts/train")}
    for section in SECTIONS:
        assert frozenset(section.overrides) in commands, section.name
        assert page.BEGIN.format(section.name) in text


def rows_of(section, setting, tests, validation=0.5):
    return [
        {"section": section, "setting": setting, "seed": str(seed), "validation": str(validation), "test": str(test),
         "epochs": "1", "seconds": "1", "commit": "c", "machine": "m", "precision": "float32"}
        for seed, test in enumerate(tests)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "expected"),
    [((0.6, 0.61, 0.62), "confirmed"), ((0.4, 0.41, 0.4), "refuted"), ((0.5, 0.7, 0.4), "undecided")],
)
def test_claims_are_decided_by_the_interval_of_differences_paired_by_seed(tests, expected):
    import page
    from sections import CLAIMS

    rows = rows_of("first", "experiment=first_version", (0.5, 0.51, 0.51))
    results = page.by_setting(rows + rows_of("first", "experiment=dropout", tests))
    [line] = [line for line in page.claims_table(CLAIMS, "", results).splitlines() if "dropout helps" in line]
    assert line.endswith(f"| 3 | {expected} |")


def test_settings_of_a_grid_are_paired_by_their_other_words():
    import page
    from sections import CLAIMS

    [claim] = [claim for claim in CLAIMS if "average" in claim.text]
    rows = []
    for rate, (avg, most) in {"0.1": (0.6, 0.5), "0.2": (0.4, 0.1)}.items():
        rows += rows_of("grid", f"pooling=avg,learning_rate={rate}", [avg])
        rows += rows_of("grid", f"pooling=max,learning_rate={rate}", [most])
    rows += rows_of("grid", "pooling=avg,learning_rate=0.3", [0.9])  # without its pair
    assert page.paired(claim, page.by_setting(rows)) == pytest.approx([0.1, 0.3])
    rows += rows_of("grid", "pooling=avg,learning_rate=0.1", (0.6, 0.9)) + rows_of(
        "grid", "pooling=max,learning_rate=0.1", (0.5, 0.4)
    )
    assert page.paired(claim, page.by_setting(rows)) == pytest.approx([0.2, 0.5])  # means by seed
    assert page.grid()["pooling=avg,dropout=0.3,learning_rate=0.001,loss=mean_squared_error"] == 0.8329


def test_a_pair_may_differ_in_several_words():
    import page
    from sections import CLAIMS, OPEN_POINTS

    rows = rows_of("augmentation", "augmentation=flip,shift,convolutions=1", (0.8, 0.9))
    rows += rows_of("augmentation", "augmentation=none,convolutions=1", (0.7,))
    rows += rows_of("dropout_in_blocks", "augmentation=flip,shift,dropout in blocks", (0.7,))
    rows += rows_of("last", "convolutions=1", (0.6,))
    results = page.by_setting(rows)
    differences = {claim.text: page.paired(claim, results) for claim in (*CLAIMS, *OPEN_POINTS)}
    assert differences["augmentation helps, with mirror images and shifts alone"] == pytest.approx([0.1])
    assert differences["dropout in each block, not before the output layer"] == pytest.approx([-0.1])
    assert differences["30 epochs, not 20"] == pytest.approx([0.1])


def test_what_validating_on_the_test_images_is_worth():
    import page

    rows = rows_of("last", "convolutions=1", (0.70, 0.72), validation=0.75)
    rows += rows_of("last_on_test", "convolutions=1", (0, 0), validation=0.8)
    rows += rows_of("augmentation_on_test", "augmentation=flip,shift", (0, 0))  # without its pair
    table = page.selection_table(page.by_setting(rows))
    assert len(table.splitlines()) == 3
    assert "| 0.8000 | 0.7100 ± 0.1271 | 0.0900 ± 0.1271 | 0.0400 ± 0.1271 |" in table
