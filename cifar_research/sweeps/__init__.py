"""Sweeps: plan, ledger, execution and search."""
