"""From a Relax module to a library: passes held to what they declare, equal bytes in every run, a process of its own."""
