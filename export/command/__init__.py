"""The command line of the export and its progress."""
