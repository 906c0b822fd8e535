"""TFX's Transform, reading and writing whole batches."""
