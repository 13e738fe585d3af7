"""Bodies to record batches: one pure module per format."""
