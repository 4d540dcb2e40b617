"""Tables of the page: of conditions, methods, classes and labels."""
