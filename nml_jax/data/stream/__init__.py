"""Read batches from a source: order, reading, quarantine."""
