"""Opening and running the graphs of each backend."""
