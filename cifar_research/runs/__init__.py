"""A run's folder: its lock, report, history and checkpoints."""
