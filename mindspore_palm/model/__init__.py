"""PaLM as MindSpore Cells: each ``construct`` reads as the paper's equation.

Suffixes of names give shapes:

    B sequences    S positions    T tokens, B*S    D d_model    H heads    K head_dim    F d_ff    V padded vocabulary
    Q queries and C context, where they are not both S

After T, the other letters are one axis: ``x_TD`` is [T, D], ``q_THK`` is [T, H*K], ``k_TK`` is [T, K]. After B, every
letter is an axis: ``q_BSHK`` is [B, S, H, K], and 1 stands for an axis of one. Activations are matrices [T, ...]:
MindSpore's CPU reduces the last axis of a matrix 17 times faster than that of a tensor of more axes (MS-36). In
``construct`` and what it calls, the receiver is ``self``, and functions have names (MS-27).

``weights.py`` has the table of all weights. ``factory.py`` builds the Cells that a configuration asks for.
"""
