"""Awaker2.5-VL and its base Qwen2-VL."""
