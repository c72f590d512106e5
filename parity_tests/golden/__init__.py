"""Packages against arrays that the published code made."""
