"""PaLM as MindSpore Cells: each ``construct`` reads as the paper's equation.

Suffixes of names are shapes:

    B sequences    S positions    T tokens, B*S    D d_model    H heads    K head_dim    F d_ff    V padded vocabulary
    Q queries and C context, where they are not both S

After T, the other letters are one axis: ``x_TD`` is [T, D], ``q_THK`` is [T, H*K], ``k_TK`` is [T, K]. After B, every
letter is an axis: ``q_BSHK`` is [B, S, H, K], and 1 is an axis of size one. Activations are matrices [T, ...]: on CPU,
MindSpore reduces the last axis of a matrix 17 times faster than that of a tensor with more axes (MS-36). In
``construct`` and the methods it calls, the receiver is named ``self`` and no function is a lambda (MS-27).

``weights.py`` holds the table of all weights. ``factory.py`` builds the Cells for a configuration.
"""
