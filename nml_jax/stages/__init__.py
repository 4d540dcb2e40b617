"""The stages of a run, one module each, and `runner`, which runs them."""
