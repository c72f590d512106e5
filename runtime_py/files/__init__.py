"""Strangers' files of common kinds, read within bounds: JSON, JSON Schema, protocol buffers, SentencePiece."""
