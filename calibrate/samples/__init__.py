"""What is shown to the model while calibrating: pictures, prompts, and how much each row counts."""
