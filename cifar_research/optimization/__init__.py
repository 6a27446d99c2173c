"""Losses, optimizers and learning-rate schedules."""
