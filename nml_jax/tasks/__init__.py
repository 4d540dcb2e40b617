"""What is tested on what."""
