"""One folder a family: its config to a ModelSpec, its published names to ours."""
