"""Custom TFX components, one folder each: spec, executor, component."""
