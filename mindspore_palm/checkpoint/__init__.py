"""Checkpoints: format, manager, restore, and the folders that models open from."""
