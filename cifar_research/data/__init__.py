"""Data: found or fetched, decoded once into a memory map, and handed out as batches by tf.data."""
