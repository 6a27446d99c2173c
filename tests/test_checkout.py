"""The commit and the uncommitted changes that a run records."""

import hashlib
import shutil
import subprocess

import pytest

from cifar_research.runs import checkout
from cifar_research.runs.checkout import Checkout

# Changes of 20 MB a second, until nobody reads them.
ENDLESS = ("-c", "alias.endless=!while head -c 2000000 /dev/zero; do sleep 0.1; done", "endless")


def git(folder, *overrides):
    name = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *name, *overrides], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    """The root of a checkout whose folder `package` has a committed file."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "file.py").write_text("one\n")
    (tmp_path / "other.txt").write_text("three\n")
    for overrides in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(tmp_path, *overrides)
    return tmp_path


def change(repository):
    """Change a file and stage another one; add one that is not tracked."""
    (repository / "package" / "file.py").write_text("two\n")
    (repository / "other.txt").write_text("four\n")
    git(repository, "add", "other.txt")
    (repository / "new.txt").write_text("new\n")


def test_a_checkout_has_its_commit_and_the_changes_to_tracked_files(repository, tmp_path_factory):
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert checkout.read(repository / "package") == Checkout(commit, b"")
    change(repository)
    result = checkout.read(repository / "package")
    assert result.commit == commit and b"-one\n+two\n" in result.patch and b"-three\n+four\n" in result.patch
    assert b"new" not in result.patch
    # The patch restores the files in another clone of the commit.
    clone = tmp_path_factory.mktemp("clone")
    git(clone, "clone", "-q", repository, ".")
    (clone.parent / "changes.patch").write_bytes(result.patch)
    git(clone, "apply", clone.parent / "changes.patch")
    assert (clone / "package" / "file.py").read_text() == "two\n" and (clone / "other.txt").read_text() == "four\n"


@pytest.mark.parametrize(
    ("settings", "attributes"),
    [
        ({"diff.external": "touch called; false"}, ""),
        ({"diff.mine.command": "touch called; false"}, "*.py diff=mine"),
        ({"diff.mine.textconv": "touch called; false"}, "*.py diff=mine"),
        ({"diff.noprefix": "true", "color.ui": "always", "diff.relative": "true", "diff.mnemonicPrefix": "true"}, ""),
        ({"core.pager": "touch called; false", "pager.diff": "true"}, ""),
    ],
)
def test_a_users_git_settings_change_nothing(repository, settings, attributes):
    (repository / ".git" / "info" / "attributes").write_text(attributes)
    change(repository)
    expected = checkout.read(repository / "package")
    for key, value in settings.items():
        git(repository, "config", key, value)
    assert checkout.read(repository / "package") == expected and expected.patch.startswith(b"diff --git a/other.txt b/")
    assert not list(repository.rglob("called"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("MOST_BYTES", 100), "the uncommitted changes are larger than 100 bytes"),
        (("_DIFF", ENDLESS), "the uncommitted changes are larger than 1,000,000 bytes"),
        (("_SECONDS", 0.2), "git diff took more than 0.2 seconds"),
        (("_DIFF", ("no-such-command",)), "git diff ended with exit code 1"),
    ],
)
def test_what_is_not_kept_is_reported_with_the_commit(repository, tmp_path, monkeypatch, change, reason):
    (repository / "package" / "file.py").write_text("two\n" * 100)
    if change[0] == "_SECONDS":
        git(repository, "config", "filter.slow.clean", "sleep 20; cat")
        (repository / ".git" / "info" / "attributes").write_text("*.py filter=slow")
    monkeypatch.setattr(checkout, *change)
    result = checkout.read(repository / "package")
    assert result.patch is None and result.not_kept == reason
    left = result.leave(tmp_path)
    assert (left["dirty"], left["changes"], left["not_kept"]) == (True, None, reason) and left["commit"]
    assert not list(tmp_path.glob("*.patch"))


def test_no_changes_leave_no_file(tmp_path):
    left = {"commit": "c", "dirty": False, "changes": None, "changes_sha256": None, "not_kept": None}
    assert Checkout("c", b"").leave(tmp_path) == left and not list(tmp_path.iterdir())


def test_the_patch_of_an_earlier_process_stays(tmp_path):
    names = [Checkout("c", patch).leave(tmp_path)["changes"] for patch in (b"1", b"1", b"2", b"", b"3", b"2")]
    assert names == ["changes.patch", "changes.patch", "changes_2.patch", None, "changes_3.patch", "changes_2.patch"]
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"1", b"2", b"3"]
    assert Checkout("c", b"1").leave(tmp_path)["changes_sha256"] == hashlib.sha256(b"1").hexdigest()


def test_the_checkout_around_an_installed_package_is_not_its_own(repository):
    installed = repository / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "file.py").touch()
    assert checkout.read(installed) is None


def test_none_without_a_checkout_or_without_git(tmp_path, monkeypatch):
    assert checkout.read(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout.read(tmp_path) is None
