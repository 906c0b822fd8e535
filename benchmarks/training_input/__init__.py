"""`csmf bench training`: the training input, the step, and the node that runs both."""
