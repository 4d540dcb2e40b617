"""Write what a run has trained as a folder that other libraries open."""
