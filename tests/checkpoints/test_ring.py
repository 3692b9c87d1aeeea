"""One run resumes on a ring of meshes, back to the first one, and has the losses of one process."""

from __future__ import annotations

import pytest
from checkpoints.command import rows_of, run, write_text

RING = {  # stages, pods, data and model of meshes, and other settings that change on the way
    (1, 1, 1, 1): [],
    (1, 1, 2, 1): ["train.micro_batch=4"],
    (2, 1, 1, 2): ["train.micro_batch=4"],
    (1, 1, 2, 2): [],
    (1, 2, 1, 2): ["parallel.shard_weights=all", "parallel.recompute=block"],
    (2, 1, 2, 1): ["train.micro_batch=4", "parallel.shard_weights=pod"],
    (1, 2, 2, 1): ["train.micro_batch=4", "parallel.shard_weights=pod", "parallel.reduce_gradients=pods_per_step"],
    (1, 1, 1, 2): ["parallel.shard_weights=off"],
}
GPT3 = ["model.block=serial", "model.attention=multi_head", "model.mlp=gelu", "model.norm=layer_norm"]
GPT3 += ["model.final_norm_scale=true", "optimizer.factored=true"]
STEPS = 6  # on each mesh
TOLERANCE = 1e-5


def go_around(home, ring, *departures):
    """Largest relative differences of losses and gradient norms from one process."""
    # all held-out text each time, as after a last step: the last step on a mesh is not the last step of one process
    options = [
        "train.checkpoint_every=4",
        "train.eval_every=6",
        "train.eval_sequences=100000",
        "model.layers=2",
        *departures,
    ]
    run(home, "one", f"train.steps={STEPS * len(ring)}", *options)
    for number, mesh in enumerate(ring, 1):
        sizes = [f"parallel.{axis}={n}" for axis, n in zip(("stages", "pods", "data", "model"), mesh, strict=True)]
        out = run(home, "ring", f"train.steps={STEPS * number}", *options, *RING[mesh], *sizes)
        assert number == 1 or f"resuming from step {STEPS * (number - 1)}\n" in out
    ours, theirs = rows_of(home / "ring"), rows_of(home / "one")
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    return {
        name: max(
            abs(float(a[name]) / float(b[name]) - 1) for a, b in zip(ours, theirs, strict=True) if a[name] and b[name]
        )
        for name in ("loss", "gradient_norm", "validation_loss")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ring", "departures"),
    [
        pytest.param([(2, 1, 1, 2), (1, 1, 1, 1)], [], id="sample"),
        pytest.param([(2, 1, 1, 2), (1, 1, 1, 1)], GPT3, id="sample, another network"),
        pytest.param([*RING, (1, 1, 1, 1)], [], id="8 meshes"),
        pytest.param([*RING, (1, 1, 1, 1)], GPT3, id="8 meshes, another network"),
    ],
)
def test_losses_are_those_of_one_process(ring, departures, tmp_path, request):
    differences = go_around(write_text(tmp_path), ring, *departures)
    assert max(differences.values()) < TOLERANCE, differences
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nmeshes {' '.join(map(str, ring))}, {STEPS} steps on each: {differences}")
