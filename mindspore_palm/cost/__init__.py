"""Bytes and FLOPs of a run, before a machine is named."""
