"""MindSpore's own graph of one rank, compiled without its devices."""
