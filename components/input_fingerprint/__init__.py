"""InputFingerprint: one value that changes when an input file does."""
