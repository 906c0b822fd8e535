"""RetrievalEvaluator: metrics on held-out events, and the gate that a model must pass."""
