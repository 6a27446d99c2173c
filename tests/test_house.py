"""Imports go down the rows of docs/architecture.md without a circle, and types are checked."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cifar_research"
ROWS = [
    {"sweeps"},
    {"evaluation", "comparison", "inference"},
    {"training"},
    {"runs", "display"},
    {"models", "augmentation", "optimization"},
    {"data"},
    {"config"},
    {"runtime"},
]
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(name):
    """Return the modules of the package that a module imports, inside functions and for types, too."""
    result = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            result |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    # Of `from package import module` the module is meant, and not what the package's __init__ holds.
    return {
        one for one in result & FILES.keys() if not any(other.startswith(f"{one}.") for other in result & FILES.keys())
    }


def row(name):
    """Return the number of a module's row, from 0 for the commands."""
    parts = name.split(".")
    return next((number for number, row in enumerate(ROWS, 1) if len(parts) > 1 and parts[1] in row), 0)


def test_every_package_has_a_row():
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert packages == set.union(*ROWS)


def test_imports_go_down():
    upward = [f"{name} imports {other}" for name in FILES for other in imports(name) if row(other) < row(name)]
    assert not upward


def test_no_circle():
    try:
        TopologicalSorter({name: imports(name) - {name} for name in FILES}).prepare()
    except CycleError as error:
        raise AssertionError(f"these import each other: {' -> '.join(error.args[1])}") from None


def test_types():
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "cifar_research"], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
