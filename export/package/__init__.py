"""The folder that is delivered: journal, side files, manifest, self-test."""
