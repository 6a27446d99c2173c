"""Evaluate a finished run: scores, calibration, robustness, comparison."""
