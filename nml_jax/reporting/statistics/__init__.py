"""Statistics of studies: paired over seeds and test rows."""
