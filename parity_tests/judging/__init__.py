"""Probes, metrics and verdicts: records that can be judged again without running anything."""
