"""A TensorFlow Serving-compatible server, its version manager and a light client."""
