"""Vision towers: which of their layers need a finer form."""
