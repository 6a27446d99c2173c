"""Data sets: download, decode and cache them, split them, and read batches."""
