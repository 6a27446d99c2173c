"""A finished run as a classifier: load, predict, export."""
