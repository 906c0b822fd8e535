"""Reading of ML Metadata: the store, and the runs in it. Writes nothing."""
