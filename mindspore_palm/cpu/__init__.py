"""C++ for one CPU: what decoding and training share, and the functions of a training step."""
