"""Conversion of weights from and to other PaLMs. Each format reads, writes, and computes logits with its own code."""
