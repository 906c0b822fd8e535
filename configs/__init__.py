"""Ready configurations, one YAML per data set: data only, found through importlib.resources."""
