"""The page of ``edgeproof serve`` in a real Chromium: used as people use it, looked at, held against rules of access."""
