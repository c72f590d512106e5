"""OmniLMM-12B."""
