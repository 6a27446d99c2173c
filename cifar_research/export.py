"""cifar-export: convert a finished run's model to SavedModel, LiteRT or ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

from cifar_research.config import permissions
from cifar_research.display import console
from cifar_research.inference.exporting import ExportError, export
from cifar_research.inference.formats import FORMATS


@console.command
def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 export failed or differs, 2 user error."""
    parser = console.ArgumentParser(prog="cifar-export", description="Export the model of a finished run.")
    parser.add_argument("run", type=Path, help="folder of a completed run")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--quantize", action="store_true", help="to 8 bits, calibrated on training images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write into (default: <run>/export)")
    parser.add_argument("overrides", nargs="*", metavar="allow_targets=[my_lab]", help="for a run with your own module")
    args = parser.parse_intermixed_args()
    if wrong := [word for word in args.overrides if not word.startswith("allow_targets=")]:
        parser.error(f"{' '.join(wrong)}: takes one run; remove the others")
    allowed = permissions.allowed_packages(args.overrides)
    try:
        path = export(args.run, args.format, args.quantize, args.output, allowed)
    except ExportError as error:
        console.error(str(error))
        sys.exit(1)
    size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    console.tell(f"{path}  {size:,} bytes")


if __name__ == "__main__":
    main()
