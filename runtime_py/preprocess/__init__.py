"""Pictures and prompts of each family, the only implementation of either."""
