"""cifar-predict: classify image files with a finished run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from cifar_research.config import permissions
from cifar_research.display import console
from cifar_research.inference import prediction


@console.command
def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 unreadable files, 2 user error or none."""
    parser = console.ArgumentParser(prog="cifar-predict", description="Classify image files with a finished run.")
    parser.add_argument("run", type=Path, help="folder of a completed run")
    parser.add_argument(
        "images",
        nargs="+",
        help="files, folders (with all below them), globs, or - for paths from standard input; and "
        "allow_targets=[my_lab] for a run with a module of your own",
    )
    parser.add_argument("--format", choices=prediction.FORMATS, default="table", help="the format (default: table)")
    parser.add_argument("--ensemble", nargs="+", default=[], type=Path, metavar="RUN",
                        help="further runs, behind the images: predict with the mean of all runs' probabilities")  # fmt: skip
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="classes for each image (default: 1)")
    args = parser.parse_intermixed_args()
    allowing = [word for word in args.images if word.startswith("allow_targets=")]
    images = [word for word in args.images if word not in allowing]
    if isinstance(sys.stdin, io.TextIOWrapper):
        # File names may be bytes that are not valid text.
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    if args.format != "table" and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    runs, allowed = [args.run, *args.ensemble], permissions.allowed_packages(allowing)
    sys.exit(prediction.predict(runs, images, args.format, args.top_k, allowed))


if __name__ == "__main__":
    main()
