"""Records of a run: banner, metrics, clock and peak."""
