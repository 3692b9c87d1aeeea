"""The decoding step as one C++ function on CPU."""
