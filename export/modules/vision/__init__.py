"""Vision towers: positions from a table, or rotary."""
