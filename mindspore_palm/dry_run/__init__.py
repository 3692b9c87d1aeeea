"""Dry run: MindSpore's own graph of one rank, compiled without the devices."""
