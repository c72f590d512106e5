"""What the field's own tools find in a package of ONNX graphs: further graphs over the same weights, and their settings."""
