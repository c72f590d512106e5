"""NVIDIA's Triton itself: the real server, as a process that tests and rehearsals start, ask and kill."""
