"""Training: setup, state, loop and steps of a run."""
