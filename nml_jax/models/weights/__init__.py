"""Weights in the layouts of other projects: one module for each layout, with `import_weights` and `export_weights`."""
