"""Prompts as plain data, and the ids that are made of them."""
