"""From one prompt to one answer: pipeline, answer loop, sampler, conversations."""
