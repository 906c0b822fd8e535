"""SchemaWriter: a schema of the configuration as an artifact."""
