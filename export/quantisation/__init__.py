"""Integer grids, codes, packing, and calibrated codes as they lie on disk."""
