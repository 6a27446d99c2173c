"""Locks: by flock, or by a file whose owner may have ended, on this or another machine."""

import errno
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cifar_research.runtime import locks
from cifar_research.runtime.errors import LockedError
from cifar_research.runtime.locks import Lock, Owner

HERE = Owner.this_process(locks._FILE)
OTHER = {"host": "node17", "boot": "b 1", "kind": locks._FILE}


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def has_flock(request, monkeypatch):
    if request.param is not None:
        refuse_flock(monkeypatch, request.param)
    return request.param is None


@pytest.fixture
def no_flock(monkeypatch):
    refuse_flock(monkeypatch, errno.ENOSYS)


def refuse_flock(monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", flock)


def owner(**changes):
    return locks.dataclasses.replace(HERE, **changes)


def ended():
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


def test_one_process_holds_it_and_is_named(tmp_path, has_flock):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire() is None and first.has_flock is has_flock
    assert second.acquire().pid == str(os.getpid()) and second.acquire(0.2) is not None
    first.release()
    assert second.acquire() is None
    second.release()
    assert not [path for path in tmp_path.iterdir() if path.name != "lock"]


def test_a_refused_command_leaves_the_file_as_it_was(tmp_path, has_flock):
    for before in (None, b"", owner(pid=ended()).lines()):
        path = tmp_path / "lock"
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
        lock = Lock(path)
        assert lock.acquire() is None
        lock.release(restores=True)
        assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize(
    ("changes", "job", "is_free", "is_free_with_word"),
    [
        ({}, "", False, False),  # it lives
        ({"pid": None}, "", True, True),
        ({"start": "1"}, "", True, True),  # another process has its number now
        ({"boot": "before 1"}, "", False, True),  # the machine was started again
        (OTHER, "", False, True),
        ({**OTHER, "job": "7 0"}, "7 1", True, True),  # SLURM has requeued it
        ({**OTHER, "job": "7 9"}, "7 10", True, True),
        ({**OTHER, "job": "7 1"}, "7 1", False, True),
        ({**OTHER, "job": "8 0"}, "7 1", False, True),
        ({"boot": ""}, "", False, False),
        ({"kind": locks._FLOCK, "pid": None}, "", True, True),
    ],
)
def test_what_an_owner_has_left(tmp_path, monkeypatch, no_flock, changes, job, is_free, is_free_with_word):
    for name, value in zip(("SLURM_JOB_ID", "SLURM_RESTART_COUNT"), job.split(), strict=False):
        monkeypatch.setenv(name, value)
    left = owner(**{**changes, **({"pid": ended()} if changes.get("pid", "") is None else {})})
    for unlocks, is_taken in ((False, is_free), (True, is_free_with_word)):
        (tmp_path / "lock").write_bytes(left.lines())
        assert (Lock(tmp_path / "lock", unlocks=unlocks).acquire() is None) is is_taken


def test_lines_that_another_program_wrote_name_an_owner(tmp_path, no_flock):
    for content in (b"1\nnode17\n1\n", b"\xff\x00\n\n", b"x\n" * 99):
        (tmp_path / "lock").write_bytes(content)
        assert Lock(tmp_path / "lock").acquire() is not None
        assert Lock(tmp_path / "lock", unlocks=True).acquire() is None


def test_a_lock_without_flock_holds_where_there_is_flock(tmp_path):
    (tmp_path / "lock").write_bytes(owner(**OTHER).lines())
    assert Lock(tmp_path / "lock").acquire().host == "node17"
    (tmp_path / "lock").write_bytes(owner(**OTHER, pid="1").lines())
    assert Lock(tmp_path / "lock", unlocks=True).acquire() is None


def test_of_many_that_find_the_same_lock_one_takes_it_over(tmp_path, no_flock):
    left = owner(pid=ended()).lines()
    for number in range(30):
        path = tmp_path / str(number)
        path.write_bytes(left)
        with ThreadPoolExecutor(8) as pool:
            result = list(pool.map(lambda path: Lock(path).acquire(), [path] * 8))
        assert result.count(None) == 1
    assert len(list(tmp_path.iterdir())) == 30


def _hold(path, pipe):
    Lock(path).acquire()
    pipe.send(None)
    pipe.recv()


def test_a_killed_process_gives_it_up(tmp_path):
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "lock", there))
    process.start()
    here.recv()
    assert Lock(tmp_path / "lock").acquire().pid == str(process.pid)
    process.kill()
    process.join()
    assert Lock(tmp_path / "lock").acquire() is None


def only_process_in(folder):
    return locks.only_process_in(folder, key="hydra.run.dir", what="process trains")


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_folder_is_made_for_what_is_kept_alone(tmp_path, has_flock, caplog, is_kept):
    folder = tmp_path / "a" / "b"
    with only_process_in(folder) as keep:
        assert not (tmp_path / "a").exists()
        if is_kept:
            keep()
            with pytest.raises(LockedError, match=rf"another process trains here \(process {os.getpid()} on "):
                only_process_in(folder).__enter__()
    assert (tmp_path / "a").exists() is is_kept
    assert ("no flock(2)" in caplog.text) is (is_kept and not has_flock)


def test_of_two_that_make_a_folder_one_is_refused(tmp_path):
    with only_process_in(tmp_path / "run") as first, only_process_in(tmp_path / "run") as second:
        first()
        with pytest.raises(LockedError, match="another process trains here"):
            second()
    with only_process_in(tmp_path / "other") as late:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "report.json").touch()
        with pytest.raises(LockedError, match="or did so just now"):
            late()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["report.json"]


def test_a_lock_of_another_machine_is_named_with_the_word_that_removes_it(tmp_path, no_flock):
    (tmp_path / ".lock").write_bytes(owner(**OTHER, pid="12", since="2030-01-01 10:00:00").lines())
    with (
        pytest.raises(LockedError, match=r"process 12 on node17, since 2030-01-01 10:00:00.*--unlock"),
        only_process_in(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(LockedError, match="hydra.run.dir: .*file.* cannot be created or written"),
        only_process_in(tmp_path / "file" / "run"),
    ):
        pass
