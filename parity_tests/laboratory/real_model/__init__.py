"""A real trained language model as the decoder of a checkpoint that we export, and everything measured on it."""
