"""Values of a checkpoint's configuration files, read with their type, range and file."""
