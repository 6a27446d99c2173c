"""Training: setup, state, loop and steps."""
