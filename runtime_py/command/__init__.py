"""The verbs chat, info, verify and bench."""
