"""Read and write the files of a run's folder. Only this package knows their names."""
