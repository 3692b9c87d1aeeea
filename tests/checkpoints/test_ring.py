"""One run goes around a ring of meshes, back to the start, and learns what one process learns."""

from __future__ import annotations

import pytest
from checkpoints.command import rows_of, run, write_text

RING = {  # meshes, and what else may change on the way
    (1, 1, 1): [],
    (1, 2, 1): ["train.micro_batch=4"],
    (1, 2, 2): [],
    (2, 1, 2): ["parallel.shard_weights=all", "parallel.recompute=block"],
    (1, 1, 2): ["parallel.shard_weights=off"],
}
STEPS = 6  # on each mesh
TOLERANCE = 1e-5


def go_around(home, ring):
    """Largest relative differences of losses and gradient norms from one process; what was said."""
    # all held-out text each time, as after the last step: the last step of one mesh is no last step of one process
    options = ["train.checkpoint_every=4", "train.eval_every=6", "train.eval_sequences=100000"]
    run(home, "one", f"train.steps={STEPS * len(ring)}", *options)
    for number, (pods, data, model) in enumerate(ring, 1):
        mesh = [*RING[pods, data, model], f"parallel.pods={pods}", f"parallel.data={data}", f"parallel.model={model}"]
        out = run(home, "ring", f"train.steps={STEPS * number}", *options, *mesh)
        assert number == 1 or f"resuming from step {STEPS * (number - 1)}\n" in out
    ours, theirs = rows_of(home / "ring"), rows_of(home / "one")
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    return {
        name: max(
            abs(float(a[name]) / float(b[name]) - 1) for a, b in zip(ours, theirs, strict=True) if a[name] and b[name]
        )
        for name in ("loss", "gradient_norm", "validation_loss")
    }


@pytest.mark.parametrize(
    "ring",
    [
        pytest.param([(1, 1, 2), (1, 1, 1)], id="sample"),
        pytest.param([*RING, (1, 1, 1)], id="5 meshes", marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_one_process(ring, tmp_path, request):
    far = go_around(write_text(tmp_path), ring)
    assert max(far.values()) < TOLERANCE, far
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nmeshes {' '.join(map(str, ring))}, {STEPS} steps on each: {far}")
