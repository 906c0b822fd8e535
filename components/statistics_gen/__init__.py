"""TFX's StatisticsGen, reading and counting whole batches."""
