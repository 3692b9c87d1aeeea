"""Training: the compiled step, the loop, what a run writes, and how it is measured."""
