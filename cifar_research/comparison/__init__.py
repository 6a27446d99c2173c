"""Compare many runs: find them, group them over seeds, rank them with significance tests."""
