"""How something is trained: the image loop, the head trainer, and what both need."""
