"""Scales tuned end to end after codes are chosen, within the memory there is."""
