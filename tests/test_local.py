"""How the local launcher divides a machine."""

import os
import stat
import time

import pytest

from cifar_research.sweeps.launchers import local


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [(None, [(0, 1, 2, 3, 4)]), (2, [(0, 1), (2, 3)]), (5, [(0,), (1,), (2,), (3,), (4,)])],
)
def test_cores_are_divided(cores, jobs, expected):
    assert [share.cores for share in local._shares(jobs, [], 1)] == expected


def test_cores_are_divided_where_a_process_cannot_be_bound_to_them(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert [len(share.cores) for share in local._shares(2, [], 1)] == [2, 2]


def test_more_jobs_than_cores_share_them(cores):
    shares = local._shares(7, [], 1)
    assert [share.cores for share in shares] == [(0,), (1,), (2,), (3,), (4,), (0,), (1,)]


def test_one_run_a_gpu_or_the_number_given(cores):
    assert [share.gpu for share in local._shares(None, ["0", "3"], 1)] == ["0", "3"]
    assert [share.gpu for share in local._shares(None, ["0", "3"], 2)] == ["0", "3", "0", "3"]
    assert [share.gpu for share in local._shares(1, ["0", "3"], 1)] == ["0"]


def test_gpus_are_those_of_the_environment_or_of_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc")
    assert local.visible_gpus() == ["2", "GPU-abc"]
    for none in ("-1", "", "NoDevFiles"):  # the last is of SLURM
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert local.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local.visible_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert local.visible_gpus() == ["0", "1"]
    program.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho '  MIG 1g.18gb     Device  0: (UUID: MIG-a)'\n"
        "echo '  MIG 1g.18gb     Device  1: (UUID: MIG-b)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n"
    )
    assert local.visible_gpus() == ["MIG-a", "MIG-b", "1"]


def test_a_worker_whose_gpu_tensorflow_does_not_see_keeps_to_its_cores():
    core = min(os.sched_getaffinity(0))
    used = local._spawn(local.Share((core,), "0"))
    end = time.monotonic() + 120
    while os.sched_getaffinity(used.process.pid) != {core} and time.monotonic() < end:
        time.sleep(0.1)
    assert os.sched_getaffinity(used.process.pid) == {core}
    used.end()


def test_a_launcher_that_has_ended_nothing_waits_no_longer_than_asked():
    launcher = local.local(jobs=2)
    assert launcher.slots == 2 and launcher.wait(0.01) == {}
    launcher.close()


@pytest.mark.parametrize("name", ["jobs", "runs_per_gpu", "runs_per_process"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: 0 is out of range"):
        local.local(**{name: 0})
