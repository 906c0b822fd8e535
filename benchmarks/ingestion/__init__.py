"""`csmf bench ingestion`: InteractionGen against CsvExampleGen and Arrow's readers."""
