"""Qwen2-VL, which Awaker2.5-VL builds on."""
