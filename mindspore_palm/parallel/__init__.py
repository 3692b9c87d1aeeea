"""How tensors are sharded: the table of logical axes, and the one owner of MindSpore's global state."""
