"""What is done to a traced graph before it is written: passes over onnx_ir models, each with its declared effect."""
