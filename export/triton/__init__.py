"""A finished package as a model of a Triton repository: what Triton loads, and what starts, scales and tries it."""
