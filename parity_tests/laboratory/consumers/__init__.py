"""What the field's own tools make of our packages: checker, optimiser, onnxruntime-genai, transformers.js."""
