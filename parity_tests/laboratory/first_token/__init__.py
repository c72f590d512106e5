"""The first token after a picture, stage by stage."""
