"""Time and memory of a run on a machine, predicted before it starts."""
