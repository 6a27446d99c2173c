"""cifar-cache: list the cached data sets and features, or delete them."""

from __future__ import annotations

import shutil
import sys

from cifar_research.config import targets
from cifar_research.display import console
from cifar_research.runtime import folders


@console.command
def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 could not delete, 2 unknown name."""
    parser = console.ArgumentParser(prog="cifar-cache", description="List or delete the caches.")
    parser.add_argument("--dir", help="the cache folder (default: $CIFAR_CACHE_DIR, or the user's cache folder)")
    parser.add_argument("--clear", metavar="NAME", help="delete the caches of this name; all deletes all")
    parser.add_argument("--all", action="store_true", help="list every folder, not the sums by name")
    arguments = parser.parse_args()
    root = folders.root(arguments.dir)
    caches = [(path.parent, path.parent.name.rpartition("-")[0]) for path in sorted(root.glob("[!.]*/meta.json"))]
    if not caches:
        print(f"Nothing is cached in {root}")
    names = {"all", *(name for _, name in caches)}
    if arguments.clear not in (None, *names):
        hint = targets.nearest(arguments.clear, names)
        console.error(f"--clear {arguments.clear}: there is no cache of this name{hint}")
        sys.exit(2)
    code, sums = 0, {name: [0, 0] for _, name in caches}
    for folder, name in caches:
        size, result = sum(path.stat().st_size for path in folder.iterdir()), ""
        if arguments.clear in ("all", name):
            try:
                shutil.rmtree(folder)  # safe: a running process keeps its mapped files
                result = "  deleted"
            except OSError as error:
                console.error(f"{folder}: cannot be deleted ({error.strerror}); check its permissions")
                code = 1
        if arguments.all or result:
            print(f"{size / 1e6:10,.1f} MB  {folder}{result}")
        sums[name] = [sums[name][0] + 1, sums[name][1] + size]
    if caches and not arguments.clear:
        for name, (number, size) in {} if arguments.all else sums.items():
            print(f"{size / 1e6:10,.1f} MB  {name}, {number} folder{'s' * (number > 1)}")
        print(f"{sum(size for _, size in sums.values()) / 1e6:10,.1f} MB  in all, in {root}")
    sys.exit(code)


if __name__ == "__main__":
    main()
