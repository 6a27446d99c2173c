"""Data: found or downloaded, decoded once into a memory map, split, and read in batches."""
