"""A decoding step as one C++ function on a CPU."""
