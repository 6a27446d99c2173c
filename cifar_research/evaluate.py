"""cifar-evaluate: evaluate finished runs, or compare two groups of them."""

from __future__ import annotations

import argparse

from cifar_research.config.schema import VIEWS
from cifar_research.display import console
from cifar_research.evaluation import images, run


@console.command
def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 no access to a file, 2 user error."""
    parser = console.ArgumentParser(
        prog="cifar-evaluate", description="Evaluate completed runs, or compare two groups."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN|data.KEY=VALUE", help="folders of runs or sweeps, or globs of "
                        "them, and overrides of their data: data=cifar10 data.dir=FOLDER")  # fmt: skip
    parser.add_argument("--against", nargs="+", metavar="RUN", help="compare with these runs, by McNemar's test")
    parser.add_argument("--ensemble", action="store_true", help="evaluate the mean of the runs' probabilities; of a "
                        "sweep, that of each setting's seeds")  # fmt: skip
    parser.add_argument("--views", choices=VIEWS[1:], help="also average over test-time views of each image")
    parser.add_argument("--corruptions", type=_count, default=run.NUM_CORRUPTED, metavar="none|all|NUMBER",
                        help="how many test images to corrupt, in 15 ways at 5 severities (default: 2000)")  # fmt: skip
    parser.add_argument("--cifar10-1", metavar="FOLDER", help="also test on CIFAR-10.1, with its v6 files in FOLDER")
    args = parser.parse_intermixed_args()
    only = "--against" if args.against else "--ensemble"
    if (args.against or args.ensemble) and (args.views or args.cifar10_1 or args.corruptions != run.NUM_CORRUPTED):
        parser.error(f"{only}: is only for the test images; remove the other options")
    if args.against and args.ensemble:
        parser.error("--ensemble: cannot be used with --against; remove one of them")
    overrides = [word for word in [*args.runs, *(args.against or [])] if images.is_override(word)]
    paths = [word for word in args.runs if word not in overrides]
    if args.against:
        first, second = run.find(paths), run.find([word for word in args.against if word not in overrides])
        print(run.compare(first, second, overrides))
        return
    groups = run.groups(paths) if args.ensemble else [[folder] for folder in run.find(paths, leaves_out=True)]
    results = run.evaluate(groups, overrides, views=args.views, corrupted=args.corruptions, cifar10_1=args.cifar10_1)
    print("\n\n".join(text for _, text in results))


def _count(text: str) -> int | None:
    """Return the value of --corruptions: 0 for none, None for all."""
    if text in ("none", "all"):
        return 0 if text == "none" else None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not none, all or a number of images")
    return int(text)


if __name__ == "__main__":
    main()
