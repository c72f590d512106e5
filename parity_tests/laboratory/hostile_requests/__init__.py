"""Requests that nobody should send, generated, at a server that others use meanwhile."""
