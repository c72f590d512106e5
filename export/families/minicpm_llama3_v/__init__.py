"""MiniCPM-Llama3-V 2.5."""
