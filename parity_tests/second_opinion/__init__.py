"""A second opinion: transformers' own code over the same checkpoint, where it has a family or a part of it.

The reference that packages are held against shares its reader of config.json with the export: a rotary base that is read
wrongly is wrong on both sides, and no comparison of theirs sees it. Here the other side reads config.json with transformers'
own configuration classes, or by keys that its part names, takes the tensors under their published names, and makes pixels
with transformers' image processors. Nothing of it comes from a `ModelSpec`. Shared are the bytes of the tensors
(`export.source`, held against safetensors and torch in tests of its own).
"""
