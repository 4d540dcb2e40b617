"""Where examples come from, in which order, and what is done to them on the host."""
