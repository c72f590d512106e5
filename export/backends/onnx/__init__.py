"""Packages of ONNX graphs with external weights."""
