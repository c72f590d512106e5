"""Where two runs part: stage, block, step."""
