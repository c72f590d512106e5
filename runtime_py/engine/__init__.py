"""Many conversations on one package at a time: slots, a queue, and one decoder call for all that are answering."""
