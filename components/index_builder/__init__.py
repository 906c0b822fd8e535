"""IndexBuilder: item vectors, ScaNN and stock flavours, serving signatures."""
