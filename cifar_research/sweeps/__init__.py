"""Sweeps: what they plan, run and remember."""
