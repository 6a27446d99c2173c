"""Search: no repeated trial, resumed to its total, pruned, diverged trials survive."""

import contextlib
import json
import os
import signal
import sqlite3

import forked
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from test_sweep import SMALL, finish, processes_in, wait_for

from cifar_research.config.sweep import parse as parse_sweep
from cifar_research.runtime.errors import ConfigError
from cifar_research.sweeps import run, search
from cifar_research.sweeps import study as study_report
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.plan import Plan

SPACE = [
    "optimizer=choice(adam,sgd)",
    "optimizer.learning_rate=tag(log,interval(0.0001,0.1))",
    "data.split_seed=range(1,4)",
]


def plan(*arguments):
    return Plan.of(parse_sweep(arguments))


def open_search(folder, trials, *overrides, seed=0):
    made = plan(*overrides)
    ledger = Ledger.open(folder, list(overrides), None)
    return search.Search(folder, search.space(made), trials, seed, made, ledger), ledger


def study(folder):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / search.STUDY}")


def test_space_of_a_command_line():
    result = search.space(plan(*SPACE, "model.hidden=[8],[16]", "backbone.kernel_size=int(interval(1,5))"))
    assert result["optimizer"] == CategoricalDistribution(["adam", "sgd"])
    assert result["optimizer.learning_rate"] == FloatDistribution(0.0001, 0.1, log=True)
    assert result["data.split_seed"] == CategoricalDistribution(["1", "2", "3"])
    assert result["model.hidden"] == CategoricalDistribution(["[8]", "[16]"])
    assert result["backbone.kernel_size"] == IntDistribution(1, 5)
    overrides = [
        "training.batch_size=interval(8,64)",
        "optimizer.learning_rate=interval(1,2)",
        "data.drop_remainder=true",
    ]
    overrides += ["data.train_size=interval(64.5,100)", "backbone.kernel_size=interval(1,5)"]
    result = search.space(plan(*overrides, "augmentation=rotation", "augmentation.rotation.degrees=interval(5,30)"))
    assert result["training.batch_size"] == IntDistribution(8, 64)
    assert result["data.train_size"] == IntDistribution(65, 100)
    assert result["backbone.kernel_size"] == IntDistribution(1, 5)
    assert result["optimizer.learning_rate"] == FloatDistribution(1, 2)
    assert result["augmentation.rotation.degrees"] == FloatDistribution(5, 30)


def test_a_study_is_in_its_folder_whatever_its_name(tmp_path):
    for name in ("q?a", "q?b", "a b%20#{c}"):
        (tmp_path / name).mkdir()
        source, _ = open_search(tmp_path / name, 1, "data.split_seed=1,2")
        assert source.next() and not source.next() and (tmp_path / name / search.STUDY).is_file()


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["seed=1"], "nothing varies"),
        (["optimizer.learning_rate=tag(log,interval(0,1))"], "optimizer.learning_rate"),
        (["model.dropout=choice(0.1,7)"], "out of range"),
        (["data.split_seed=range(5,0)"], "has no values"),
        (["optimizer=adam,sgd", "optimizer={clip_norm:1},{clip_norm:2}"], "optimizer: a search cannot vary"),
        (["optimizer.learning_rate=interval(-1,1)"], "learning_rate"),
        (["data.split_seed=1,2", "data.val_fraction=0"], "a search needs validation images"),
        (["seed=1,2"], "seed: a search would look for the best one"),
        (["data.folds=3", "data.fold=0,1"], "data.fold: a search would look for the best one"),
    ],
)
def test_a_space_that_cannot_work_is_refused(overrides, part):
    with pytest.raises(ConfigError, match=part):
        search.space(plan(*overrides))


def test_nothing_is_proposed_twice_and_the_whole_space_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_RANDOM_TRIALS", 3)  # of eight, so that most are of the model
    overrides = ["optimizer=adam,sgd", "model.dropout=0.1,0.2", "data.split_seed=0,1"]
    source, ledger = open_search(tmp_path, 100, *overrides)
    folders = []
    while job := source.next():
        folders.append(job.folder)
        source._study.tell(source._numbers[job.folder], 0.1 * job.config["model"]["dropout"])
    assert len(folders) == len(set(folders)) == 8
    # Another launch finds them all, and however often it asks, no trial is added.
    again, _ = open_search(tmp_path, 100, *overrides)
    assert [again.next() for _ in range(3)] == [None] * 3 and len(study(tmp_path).trials) == 8
    assert search.size(search.space(plan(*overrides))) == 8 and search.size(search.space(plan(*SPACE))) is None


def test_a_held_out_fold_is_enough_for_a_search():
    assert search.space(plan("data.val_fraction=0", "data.folds=3", "optimizer=adam,sgd"))


def test_a_search_goes_on_as_no_search_of_another_seed(tmp_path):
    def numbers(folder, seed):
        source, _ = open_search(folder, 12, *SPACE, seed=seed)
        return [source._study.ask(source._space).params["optimizer.learning_rate"] for _ in range(3)]

    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    one = numbers(tmp_path / "first", 0)
    assert not set(numbers(tmp_path / "first", 0)) & set(numbers(tmp_path / "second", 3)) and len(set(one)) == 3


def test_the_jobs_of_a_search_know_its_total():
    job = plan("sweep=perspectives").job(["optimizer.learning_rate=0.01"])
    assert job.config["sweep"]["trials"] == 30


def test_goes_on_to_the_total_and_not_to_as_many_again(tmp_path):
    source, ledger = open_search(tmp_path, 12, *SPACE)
    first = []
    for _ in range(5):
        job = source.next()
        first.append(job.folder)
        source._study.tell(source._numbers[job.folder], 0.5)
    half_done = source.next()  # and now a kill
    ledger.write()
    source, ledger = open_search(tmp_path, 12, *SPACE)
    again = []
    while job := source.next():
        again.append(job.folder)
        source._study.tell(source._numbers[job.folder], 0.5)
    assert again[0] == half_done.folder
    assert len(again) == 7 and not set(again) & set(first)
    with pytest.raises(ConfigError, match="another space"):
        open_search(tmp_path, 12, *SPACE[:2], "data.split_seed=range(1,5)")


def test_a_search_that_was_killed_while_it_wrote_keeps_its_space(tmp_path):
    open_search(tmp_path, 12, *SPACE)
    copy = tmp_path / "copy"
    copy.mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / search.STUDY)) as db:
        db.execute("PRAGMA cache_size = 1")  # so that pages are written before the transaction ends
        db.execute("CREATE TABLE numbers (number INTEGER)")
        db.executemany("INSERT INTO numbers VALUES (?)", [(number,) for number in range(10_000)])
        for path in tmp_path.glob(f"{search.STUDY}*"):
            (copy / path.name).write_bytes(path.read_bytes())
    other = [*SPACE[:2], "data.split_seed=range(1,5)"]
    before = {path: path.read_bytes() for path in copy.iterdir()}
    search.check(copy, search.space(plan(*other)))  # cannot read it
    with (
        pytest.raises(ConfigError, match="another space"),
        run._undone_if_refused(lambda *_: None, Ledger(copy, other, [])),
    ):
        open_search(copy, 12, *other)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before and len(before) == 2


def test_two_trials_that_compute_the_same_do_not_run_at_once(tmp_path):
    source, _ = open_search(tmp_path, 4, "data.split_seed=0,1", "augmentation=flip,[flip]")
    jobs_of = []
    while job := source.next():
        jobs_of.append(job.folder)
    assert len(jobs_of) == len(set(jobs_of)) == 2


def test_what_crashed_is_repeated_and_what_diverged_is_not(tmp_path):
    source, ledger = open_search(tmp_path, 3, *SPACE)
    crashed, diverged = source.next(), source.next()
    crashed.state, diverged.state = "failed", "diverged"
    source.tell(crashed)
    source.tell(diverged)
    assert {trial.state for trial in study(tmp_path).trials} == {TrialState.FAIL}
    ledger.write()
    source, ledger = open_search(tmp_path, 3, *SPACE)
    again = []
    while job := source.next():
        again.append(job.folder)
        source._study.tell(source._numbers[job.folder], 0.5)
    assert again[0] == crashed.folder and diverged.folder not in again and len(again) == 2


def test_hopeless_is_in_the_worst_quarter_from_half_of_the_epochs_on(tmp_path):
    source, _ = open_search(tmp_path, 10, *SPACE)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        number = source._numbers[source.next().folder]
        rule = search.pruner_of((source._url, number), "accuracy", 4)
        assert not any([rule({"epoch": epoch, "val_accuracy": value}) for epoch in (1, 2, 3)])
        source._study.tell(number, value)
    bad, good = (source.trial_of(source.next()) for _ in range(2))
    rule = search.pruner_of(bad, "accuracy", 4)
    assert [rule({"epoch": epoch, "val_accuracy": 0.19}) for epoch in (1, 2)] == [False, True]
    assert search.pruner_of(bad, "accuracy", 4)({"epoch": 2, "val_accuracy": 0.19})  # after a restart, too
    assert not search.pruner_of(good, "accuracy", 4)({"epoch": 2, "val_accuracy": 0.21})


@pytest.mark.slow
def test_a_killed_search_ends_with_its_total(tmp_path):
    overrides = [
        "sweep=perspectives", "sweep.trials=7", "optimizer=choice(adam,sgd)", "optimizer.learning_rate=choice(0.001,1e30)",
        "experiment=first_version", "schedule=constant", "augmentation=none", "model.dropout=choice(0.0,0.3)",
        "tensorboard.enabled=false",
    ]  # fmt: skip
    small = [word.replace("training.epochs=3", "training.epochs=1") for word in SMALL]
    command = [*small, *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    process = forked.Process(command, cwd=tmp_path)
    wait_for(lambda: len(list((tmp_path / "sweep").glob("*/report.json"))) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not processes_in(tmp_path), None)
    done = finish(tmp_path, command=command)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/report.json")]
    assert len(reports) == 7 and len({report["config_hash"] for report in reports}) == 7
    trials = study(tmp_path / "sweep").trials
    # The kill may come between a trial's beginning and its parameters.
    begun = [trial for trial in trials if trial.params]
    values = {(t.params["optimizer"], t.params["optimizer.learning_rate"]): t.state for t in begun}
    assert values[("sgd", "1e+30")] is TrialState.FAIL, values  # of eight combinations it is in two
    assert len(begun) == 7 and "diverged" in done.stdout
    assert not [trial for trial in trials if trial.state is TrialState.RUNNING]


@pytest.mark.parametrize(
    ("values", "states", "expected", "absent"),
    [
        ([], {}, ["0 trials", "need 10 completed trials of different results; there are 0"], "best"),
        ([0.1] * 9, {}, ["9 trials: 9 complete.", "0.1000, of trial 0", "there are 9"], "(PED"),
        ([0.1] * 12, {}, ["need 10 completed trials of different results"], "(PED"),
        # A pruned trial has a value, and is neither the best nor part of the importances.
        ([0.9, *(0.1 * (i % 2) for i in range(12))], {0: "PRUNED"}, ["12 complete", "1 pruned", "0.1000", "best 5 of 12"], "0.9"),
    ],
)  # fmt: skip
def test_a_report_shows_what_the_trials_show(tmp_path, values, states, expected, absent):
    storage = f"sqlite:///{tmp_path / search.STUDY}"
    made = optuna.create_study(storage=storage, study_name="sweep", direction="maximize")
    distributions = {"optimizer": CategoricalDistribution(["adam", "sgd"]), "rate": FloatDistribution(0, 1)}
    for i, value in enumerate(values):
        params = {"optimizer": "sgd" if value == 0.1 else "adam", "rate": i / 20}
        state = TrialState[states.get(i, "COMPLETE")]
        made.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=distributions, state=state))
    before = (tmp_path / search.STUDY).read_bytes()
    parts = study_report.section(tmp_path, "Search", "accuracy").parts
    text = " ".join(part for part in parts if isinstance(part, str))
    assert all(part in text for part in expected) and absent not in text
    assert text.endswith(f"optuna-dashboard {storage}") and (tmp_path / search.STUDY).read_bytes() == before
    for table in (part for part in parts if isinstance(part, list)):
        shares = {name: float(share) for name, share in table[1:]}
        assert shares["optimizer"] > 0.6 and sum(shares.values()) == pytest.approx(1, abs=0.02)
    if len(values) == 13:
        (figure,) = (part for part in parts if not isinstance(part, (str, list)))
        assert list(figure.data[0].y) == [0.0, *[0.1] * 11] and list(figure.data[1].x) == list(range(1, 13))


def test_a_search_of_the_lowest_loss_reports_losses(tmp_path):
    made = optuna.create_study(storage=f"sqlite:///{tmp_path / search.STUDY}", study_name="sweep", direction="maximize")
    for loss in (0.9, 0.4, 0.6):  # a trial's value is the negative loss
        made.add_trial(optuna.trial.create_trial(value=-loss, state=TrialState.COMPLETE))
    _, best, figure, *_ = study_report.section(tmp_path, "Search", "loss").parts
    assert best == "The best validation loss is 0.4000, of trial 1, counted from 0."
    assert list(figure.data[0].y) == [0.9, 0.4, 0.4] and list(figure.data[1].y) == [0.9, 0.4, 0.6]
    assert figure.layout.yaxis.title.text == "validation loss"


def test_a_damaged_study_is_a_sentence_in_the_report(tmp_path):
    (tmp_path / search.STUDY).write_bytes(b"no study" * 100)
    (part,) = study_report.section(tmp_path, "Search", "accuracy").parts
    assert part.startswith(f"{tmp_path / search.STUDY}: cannot be read (") and "\n" not in part
    (tmp_path / search.STUDY).write_bytes(b"")
    (part,) = study_report.section(tmp_path, "Search", "accuracy").parts
    assert "cannot be read" in part and (tmp_path / search.STUDY).stat().st_size == 0
