"""cifar-cache: what is kept of data sets and of backbones' features, and how to be rid of it."""

from __future__ import annotations

import argparse
import shutil
import sys

from cifar_research.config import targets
from cifar_research.display import console
from cifar_research.runtime import folders
from cifar_research.runtime.errors import DataError


@console.command
def main() -> None:
    """The command line. Exit codes: 0 done, 1 something could not be deleted, 2 a name that is not there."""
    parser = argparse.ArgumentParser(prog="cifar-cache", description="List what is cached, or delete it.")
    parser.add_argument("--dir", help="the folder, as data.cache_dir; else $CIFAR_CACHE_DIR or the user's cache folder")
    parser.add_argument("--clear", metavar="NAME", help="delete the caches of this name, such as features, or all")
    given = parser.parse_args()
    try:
        root, code = folders.root(given.dir), 0
    except DataError as error:
        console.error(str(error))
        sys.exit(2)
    found = sorted(path.parent for path in root.glob("[!.]*/meta.json"))
    for folder in found:
        size = sum(path.stat().st_size for path in folder.iterdir())
        is_meant = given.clear == "all" or given.clear == folder.name.rpartition("-")[0]
        if is_meant:
            try:
                shutil.rmtree(folder)  # a run that has mapped its files keeps them until it ends
            except OSError as error:
                console.error(f"{folder}: cannot be deleted ({error.strerror})")
                code = 1
                continue
        print(f"{size / 1e6:10,.1f} MB  {folder}{'  deleted' if is_meant else ''}")
    names = {folder.name.rpartition("-")[0] for folder in found}
    if given.clear not in (None, "all", *names):
        console.error(
            f"--clear {given.clear}: nothing of this name is cached{targets.nearest(given.clear, [*names, 'all'])}"
        )
        code = 2
    if not found:
        print(f"Nothing is cached in {root}")
    sys.exit(code)


if __name__ == "__main__":
    main()
