"""A run that was stopped before its last epoch, made of a whole one."""

import shutil

KEEPS_BOTH = "training.keep_checkpoints=2"  # of two epochs


def interrupted(whole, folder):
    """Copy a run that kept the checkpoints of its epochs, without what it left of the last one; return the folder."""
    shutil.copytree(whole, folder)
    for name in ("report.json", "history.csv", "model.weights.h5"):
        (folder / name).unlink()
    sorted((folder / "checkpoints").glob("step-*.ckpt"))[-1].unlink()
    return folder
