"""The wheel has all that a run needs, and works in another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def check(command, **changes):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, since setuptools leaves its build folders where it works.
    source = folder / "source"
    for name in ("conf", "cifar_research"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    check([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source])
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_option(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"cifar_research/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    expected = conf | {str(path.relative_to(ROOT)) for path in (ROOT / "cifar_research").rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "cifar_research").rglob("*.csv")}
    assert expected == {name for name in names if ".dist-info/" not in name}


def test_installed_in_another_folder_it_trains(wheel, tmp_path):
    check([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"])
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    check([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel])
    # Its requirements come from this environment, where the package itself is editable.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = tmp_path / "venv" / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = check(
        [python, "-c", "import cifar_research; print(cifar_research.__file__)"], cwd=tmp_path, env=environment
    )
    assert where.startswith(str(site))
    overrides = [
        "experiment=quickstart", "data.train_images=200", "data.test_images=50", "training.epochs=1",
        "backbone.filters=[8]", "model.hidden=[8]",
    ]  # fmt: skip
    main = [python, "-c", "from cifar_research.train import main; main()"]  # as the console script does
    module = [python, "-m", "cifar_research.train"]  # which calls the same function
    assert "quickstart: completed" in check([*main, *overrides], cwd=tmp_path, env=environment)
    assert "name: quickstart" in check([*module, *overrides, "--cfg", "job"], cwd=tmp_path, env=environment)
    assert len(list((tmp_path / "outputs" / "quickstart").glob("*/report.json"))) == 1
    entry = next(site.glob("cifar_research-*.dist-info")) / "entry_points.txt"
    assert "cifar-train = cifar_research.train:main" in entry.read_text()
