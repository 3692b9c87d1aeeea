"""Records of a run: banner, metrics.csv, TensorBoard, loss chart, clock and peak."""
