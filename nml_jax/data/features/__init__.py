"""Features: files that people bring, banks that we write, and what both are to those who read them."""
