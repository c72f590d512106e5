"""What a config says, read by type and bounds: sections, and the parts of a spec that many families share."""
