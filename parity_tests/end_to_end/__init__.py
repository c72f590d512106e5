"""Whole commands and compiled libraries: tests that belong to no single module."""
