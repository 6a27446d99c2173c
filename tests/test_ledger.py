"""A sweep's ledger and the files of its jobs: appended to, read after a cut, kept for the best jobs."""

import resource

import pytest

from cifar_research.runs import report
from cifar_research.runs.ledger import LEDGER, Job, read
from cifar_research.runtime.errors import ReportError, WriteError
from cifar_research.sweeps.keep import Keeper
from cifar_research.sweeps.ledger import Ledger


def config(seed):
    data, training = {"name": "synthetic", "dir": None}, {"phases": {}, "monitor": "accuracy"}
    return {"augmentation": {}, "data": data, "training": training, "seed": seed}


def test_a_ledger_cut_at_any_byte_loses_only_the_last_changes(tmp_path):
    planned = [Job(f"seed={seed}", [f"seed={seed}"], config(seed)) for seed in range(3)]
    whole = Ledger.open(tmp_path, ["seed=0,1,2"], planned)
    whole.write()
    for job, state in [(planned[0], "running"), (planned[0], "failed"), (planned[1], "running")]:
        whole.update(job, state, "no such rate" if state == "failed" else None)
    path = tmp_path / LEDGER
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for end in range(first, len(content) + 1):
        path.write_bytes(content[:end])
        arguments, jobs = read(tmp_path)
        assert arguments == ["seed=0,1,2"]
        result = {job.folder: job.state for job in jobs}
        lines = content[:end].count(b"\n")
        assert list(result) == [job.folder for job in planned][: lines - 1]
        assert result.get("seed=0", "waiting") == ["waiting", "running", "failed", "failed"][max(0, lines - 4)]
        again = Ledger.open(tmp_path, arguments, [Job(job.folder, job.overrides, job.config) for job in planned])
        assert [job.folder for job in again.jobs] == [job.folder for job in planned]
    for end in (0, first - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ReportError, match="is damaged"):
            read(tmp_path)


def test_a_change_appends_one_line_and_a_full_disk_leaves_the_ledger_whole(tmp_path):
    ledger = Ledger.open(tmp_path, ["seed=0,1"], [Job(f"{seed}", [], config(seed)) for seed in range(2)])
    ledger.write()
    before = (tmp_path / LEDGER).read_bytes()
    ledger.update(ledger.jobs[1], "running")
    after = (tmp_path / LEDGER).read_bytes()
    assert after.startswith(before) and after.count(b"\n") == before.count(b"\n") + 1
    ledger.update(ledger.add(Job("2", [], config(2))), "running")  # as a search does
    assert [job.folder for job in read(tmp_path)[1]] == ["0", "1", "2"]
    before = (tmp_path / LEDGER).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(WriteError, match=r"jobs\.jsonl: cannot be written"):
            ledger.update(ledger.jobs[0], "running")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / LEDGER).read_bytes() == before
    (tmp_path / LEDGER).unlink()
    ledger.update(ledger.jobs[0], "failed", "no such rate")  # someone has deleted it
    assert [job.state for job in read(tmp_path)[1]] == ["failed", "running", "running"]


def test_a_sweep_keeps_its_best_jobs_and_those_that_failed(tmp_path):
    def ended(folder, state, accuracy=None):
        run = tmp_path / folder
        (run / "checkpoints").mkdir(parents=True)
        for name in ("model.weights.h5", "checkpoints/step-00000001.ckpt"):
            (run / name).touch()
        val = None if accuracy is None else {"accuracy": accuracy, "loss": accuracy}
        report.write_report(run / "report.json", {"status": state, "val": val, "config": config(0)})
        return Job(folder, [], config(0), state=state)

    def with_weights():
        return {path.parent.name for path in tmp_path.glob("*/model.weights.h5")}

    earlier = [ended(f"{n}", "completed", n / 20) for n in range(8)]
    keeper = Keeper(tmp_path, "best", earlier)
    assert len(with_weights()) == 8
    keeper.ended(ended("failed", "failed"))
    keeper.ended(ended("unvalidated", "completed"))
    keeper.ended(ended("diverged", "diverged"))
    for n in range(8, 12):
        keeper.ended(ended(f"{n}", "completed", n / 20))
    assert with_weights() == {*map(str, range(2, 12)), "failed", "unvalidated"}
    assert not list((tmp_path / "0" / "checkpoints").iterdir()) and (tmp_path / "0" / "report.json").exists()
    assert keeper.num_removed == 3
    Keeper(tmp_path, "all", earlier).ended()
    assert len(with_weights()) == 12
    Keeper(tmp_path, "none", earlier).ended()
    assert with_weights() == {"8", "9", "10", "11", "failed", "unvalidated"}
