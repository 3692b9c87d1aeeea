"""PaLM as MindSpore Cells: each ``construct`` reads as the paper's equation.

Shape letters: B batch, S length, T = B*S tokens, D d_model, H heads, K head_dim, F d_ff, V padded vocabulary.
Activations are matrices [T, D]: MindSpore's CPU reduces the last axis of a matrix 17 times faster than that of a higher
tensor (MS-36). MS-27: in ``construct`` and what it calls, the receiver is ``self``, and functions have names.
"""
