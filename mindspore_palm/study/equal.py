"""Networks that cost the same: the d_ff at which a variant has the parameters, or the FLOPs, of the base."""

from __future__ import annotations

from mindspore_palm.config import PaLMConfig
from mindspore_palm.errors import UserError

CLOSEST = 0.01  # share of parameters or FLOPs by which a variant may differ


def cost(model: PaLMConfig, length: int, held: str) -> int:
    """Parameters, or FLOPs per token at a sequence length, as ``PaLMConfig`` counts them."""
    return model.parameter_count() if held == "parameters" else model.flops_per_token(length)


def equal_d_ff(model: PaLMConfig, base: PaLMConfig, length: int, held: str) -> int:
    """The d_ff at which a network costs most nearly what another one does.

    Both costs are linear in d_ff, and d_ff is a multiple of the heads.

    Args:
        model: the network, of any d_ff.
        base: the other one.
        length: tokens per sequence.
        held: parameters or flops.

    Raises:
        UserError: no d_ff comes within ``CLOSEST``.
    """
    heads = model.heads

    def at(d_ff: int) -> int:
        return cost(model.model_copy(update={"d_ff": d_ff}), length, held)

    goal, first = cost(base, length, held), at(heads)
    steps = round((goal - first) / (at(2 * heads) - first))
    d_ff = heads * (1 + max(0, steps))
    off = at(d_ff) / goal - 1
    if abs(off) > CLOSEST:
        raise UserError(
            f"no model.d_ff gives it as many {held} as the base has: {d_ff} is {off:+.1%} off; "
            "write hold: nothing, or choose other sizes"
        )
    return d_ff
