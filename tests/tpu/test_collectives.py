"""XLA's program is read right: every way of writing a group, and every face of a reduce-scatter."""

from __future__ import annotations

import pytest
from reference.palm import Shape
from tpu.case import Case
from tpu.collectives import Exchange, group_axes, per_layer, replica_group

# 2 pods x 2 data x 4 model; chips of a pod are numbered from 0
CASE = Case(
    shape=Shape(layers=2, d_model=64, heads=4, head_dim=8, d_ff=128, vocab=100, padded_vocab=104),
    length=16,
    sequences=2,
    pods=2,
    data=2,
    model=4,
    recompute="block",
    topology="2x2x2",
)

PROGRAM = """
%all-reduce-scatter.1 (input.1: bf16[64,72]) -> bf16[32,72] {
  %all-reduce.5 = bf16[64,72]{1,0} all-reduce(%input.1), channel_id=3, replica_groups={{0,4},{1,5},{2,6},{3,7}}
  ROOT %dynamic-slice.1 = bf16[32,72]{1,0} dynamic-slice(%all-reduce.5, %i), dynamic_slice_sizes={32,72}
}

%windowed_dot_general_body_rs (param.1: bf16[2,16,16]) -> bf16[2,16,16] {
  %cp.1 = (bf16[2,16,16], bf16[2,16,16], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,2},{3,0}}
  %cp.2 = (bf16[2,16,16], bf16[2,16,16], u32[]) collective-permute-start(%y), source_target_pairs={{0,3},{1,0}}
}

%forward_body (param.2: bf16[2,16,16]) -> bf16[2,16,16] {
  %all-gather.1 = bf16[1,64,72]{2,1,0} all-gather(%w), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={1}
  %while.1 = (bf16[2,16,16]) while(%t), condition=%c, body=%windowed_dot_general_body_rs
}

%backward_body (param.3: bf16[2,16,16]) -> bf16[2,16,16] {
  %fusion.1 = bf16[32,72]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %rs.1 = bf16[2,16,16]{2,1,0} reduce-scatter(%h), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %send.1 = (bf16[18,1,128]{2,1,0}, u32[], token[]) send(%s, %t), attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %cp.3 = (bf16[8,72], bf16[8,72], u32[]) collective-permute-start(%z), source_target_pairs={{0,4},{1,5}}
}

ENTRY %main (param.4: bf16[2,16,16]) -> bf16[2,16,16] {
  %while.2 = (bf16[2,16,16]) while(%t), condition=%c, body=%forward_body
  %while.3 = (bf16[2,16,16]) while(%t), condition=%c, body=%backward_body
}
"""


def test_a_layers_exchanges():
    assert dict(per_layer(PROGRAM, CASE)) == {
        Exchange("forward", "all-gather", "data", "q_wi", (64, 72), "bf16", 2 * 64 * 72): 1,
        Exchange("forward", "reduce-scatter in a product", "model", "activations", (2, 16, 64), "bf16", 4096): 1,
        Exchange("backward", "reduce-scatter", "data", "q_wi", (64, 72), "bf16", 2 * 64 * 72): 1,
        Exchange("backward", "reduce-scatter", "model", "activations", (8, 16, 16), "bf16", 4096): 1,
        Exchange("backward", "all-reduce by hosts", "pod", "q_wi", (18, 128), "bf16", 2 * 18 * 128): 1,
        Exchange("backward", "permute", "data", "q_wi", (8, 72), "bf16", 2 * 8 * 72): 1,
    }


def test_a_ring_of_the_other_half():
    of = [kind.op for kind in per_layer(PROGRAM.replace("_body_rs", "_body_ag"), CASE) if "product" in kind.op]
    assert of == ["all-gather in a product"]


@pytest.mark.parametrize(
    ("written", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", "model"),
        ("[2,4]<=[8]", "model"),
        ("mesh['a'=2,'b'=4] {'b'}", "model"),
        ("{{0,4},{1,5},{2,6},{3,7}}", "data"),
        ("[4,2]<=[2,4]T(1,0)", "data"),
        ("mesh['a'=2,'b'=4] {'a'}", "data"),
        ("[1,8]<=[8]", "data x model"),
        ("{{0,2},{1,3}}", "2 chips"),
    ],
)
def test_groups(written, axes):
    assert group_axes(CASE, replica_group(f"all-reduce(%x), replica_groups={written}, to_apply=%add")) == axes


def test_a_program_without_its_two_loops_is_an_error():
    with pytest.raises(ValueError, match="two loops over layers were expected"):
        per_layer(PROGRAM.replace("while(%t), condition=%c, body=%backward_body", "copy(%t)"), CASE)
