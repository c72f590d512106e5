"""What is remembered of the samples: inputs of layers, their moments, one block at a time."""
