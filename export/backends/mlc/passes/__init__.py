"""From a Relax module to virtual machine code: the passes of our own, each with its declared effect, and their order."""
