"""What happens to a run: one module a stage, and `runner`, which runs them."""
