"""The version of edgeproof."""

VERSION = "0.1.0"
