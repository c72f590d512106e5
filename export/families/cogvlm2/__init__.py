"""CogVLM2, for pictures and for video."""
