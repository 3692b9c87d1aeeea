"""Ascend's fused attention computes the same as plain attention, as far as a machine without Ascend can tell.

The primitive is replaced by its documentation, written as matmuls. With input_layout BSND, query heads share the single
head of keys and values. Scores are multiplied by scale_value. With sparse_mode 2, the mask is a lower left triangle for
any length. The fourth result is softmax(scores) v.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindspore_palm import PaLM, PaLMConfig
from mindspore_palm.devices import DEVICES
from mindspore_palm.model import attention
from mindspore_palm.model.factory import make_attention
from mindspore_palm.parallel.axes import Layout, layout

CONFIG = PaLMConfig(layers=1, d_model=24, heads=3, head_dim=8, d_ff=48, vocab_size=64)


class Documented(nn.Cell):
    """FlashAttentionScore as its documentation describes it."""

    def __init__(self, head_num, scale_value, input_layout, sparse_mode):
        super().__init__()
        assert (head_num, input_layout, sparse_mode) == (CONFIG.heads, "BSND", 2)
        self.scale, self.softmax = scale_value, ops.Softmax(-1)

    def construct(self, q, k, v, shift, drop, padding, mask):
        length = q.shape[1]
        q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * self.scale
        scores = scores - 1e30 * ops.cast(mask[:length, :length], q.dtype)
        return None, None, None, ops.transpose(ops.matmul(self.softmax(scores), v), (0, 2, 1, 3))


@pytest.mark.parametrize("length", [7, 128])
def test_fused_and_plain_attention_agree(device, rng, monkeypatch, length):
    inputs = Tensor(rng.integers(0, CONFIG.vocab_size, (2, length)).astype(np.int32))
    plain = PaLM(CONFIG, seed=9)(inputs).asnumpy()
    monkeypatch.setattr(attention, "FlashAttentionScore", Documented)
    tests_own = {"fused_dtypes": ("float32",), "fused_head_dims": range(8, 9)}
    monkeypatch.setitem(DEVICES, "Ascend", dataclasses.replace(DEVICES["Ascend"], **tests_own))
    with layout(Layout(target="Ascend")):
        fused = PaLM(CONFIG, seed=9)
    assert isinstance(fused.blocks[0].attention.attend, attention.FusedAttention)
    np.testing.assert_allclose(fused(inputs).asnumpy(), plain, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("target", "dtype", "head_dim", "is_fused"),
    [
        ("Ascend", "bfloat16", 256, True),
        ("Ascend", "float16", 16, True),
        ("Ascend", "float32", 256, False),  # MindSpore documents the primitive for two bytes
        ("Ascend", "bfloat16", 24, False),  # and heads of a multiple of 16, up to 512
        ("Ascend", "bfloat16", 528, False),
        ("GPU", "float16", 256, False),
        ("CPU", "float16", 256, False),
    ],
)
def test_attention_is_fused_where_the_primitive_takes_it(target, dtype, head_dim, is_fused):
    config = CONFIG.model_copy(update={"head_dim": head_dim})
    with layout(Layout(target=target, compute_dtype=dtype)):
        attend = make_attention(config).attend
    assert isinstance(attend, attention.FusedAttention) == is_fused
