"""Awaker2.5-VL: Qwen2-VL with routed experts."""
