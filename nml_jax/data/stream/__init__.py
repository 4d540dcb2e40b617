"""From a source to batches: order, reading, quarantine."""
