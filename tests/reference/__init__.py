"""PaLM, its loss and its optimizer, written again in JAX from the papers: the independent witness of the parity tests.

Nothing here imports ``mindspore_palm``, and nothing in ``mindspore_palm`` imports this.
"""
