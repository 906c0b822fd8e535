"""`csmf bench data-nodes`: where the time goes from the log to the transformed examples."""
