"""Reading tensors: safetensors, pickles, shards, the hub."""
