"""The method: preprocessing, masks, towers, losses, stages, index and metrics. Imports no TFX."""
