"""A checkpoint found, recognised and described; random ones in a published layout."""
