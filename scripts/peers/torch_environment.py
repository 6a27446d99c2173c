"""Make .venv-torch, the environment of PyTorch, as torch_requirements.txt says, and print its Python."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "scripts" / "torch_requirements.txt"


def python(log):
    """Return the environment's Python; the environment is made the first time, or when its requirements change."""
    folder, wanted = ROOT / ".venv-torch", REQUIREMENTS.read_text()
    executable, mark = folder / "bin" / "python", folder / "complete"
    if not mark.exists() or mark.read_text() != wanted:
        log(f"installing PyTorch into {folder}; this takes a minute or two, once")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        words = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if done.returncode:
            sys.exit(
                f"error: {done.stderr.strip()}\nPyTorch could not be installed; benchmark without it: --peers ours keras"
            )
        mark.write_text(wanted)
    return executable


if __name__ == "__main__":
    print(python(lambda text: print(text, file=sys.stderr)))
