"""Packages for phones: Relax modules compiled by TVM, and weights in MLC's layout."""
