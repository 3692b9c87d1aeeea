"""Weights from and to other PaLMs: each format reads, writes, and computes logits by its own means."""
