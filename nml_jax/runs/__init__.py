"""What lies in the folder of a run: whoever knows the name of a file there stands here."""
