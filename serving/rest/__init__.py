"""The REST interface of TensorFlow Serving: Predict, Classify, Regress, status and metadata."""
