"""Sizes, peaks and fits from shapes alone, and how they are told."""
