"""Read feature files, read and write feature banks, and give both one interface."""
