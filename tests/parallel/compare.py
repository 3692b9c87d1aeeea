"""Comparison of the workers' results with those of their twins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

Seen = Mapping[str, np.ndarray]
CURVE = ("loss", "cross-entropy", "gradient norm")
KINDS = {"gradient/": "gradients", "final/": "weights"}

# The largest differences over all cases and twins: loss and cross-entropy 5e-7, gradient norm 4e-7, gradients 9e-7,
# weights 2e-7. This is rounding: a float32 operation is exact to 6e-8, and the order of sums differs. The tolerances
# are ten times as large, because other processors add in yet other orders. The smallest errors found so far showed at
# 4e-5 (AdamW's eps under the wrong root) and 1e-4 (a step counted from 2).
# Weights may differ more: Adafactor's first step is the sign of the gradient, and of 100,000 gradients a few may be
# smaller than their rounding error. A different sign moves a kernel by 1e-5 of its norm.
TOLERANCES = {"loss": 5e-6, "cross-entropy": 5e-6, "gradient norm": 5e-6, "gradients": 8e-6, "weights": 3e-5}


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference over the norm, in float64."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def gather(folder: Path, devices: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Full weights and gradients from all workers' shards, and the names of what the workers disagree about.

    Workers that hold the same shard must hold the same bits.
    """
    ranks = [dict(np.load(folder / f"{rank}.npz")) for rank in range(devices)]
    whole: dict[str, np.ndarray] = {"curve": ranks[0]["curve"]}
    disagree = [
        f"curve of rank {i}" for i, seen in enumerate(ranks) if not np.array_equal(seen["curve"], ranks[0]["curve"])
    ]
    kinds = ("initial/", "gradient/", "final/")
    for key in dict.fromkeys(key for seen in ranks for key in seen if key.startswith(kinds)):
        holders = {rank: seen for rank, seen in enumerate(ranks) if key in seen}  # a stage of a pipeline, or all
        bounds = [seen[f"window/{key.split('/')[1]}"] for seen in holders.values()]
        out = np.zeros(np.max(bounds, axis=(0, 1))[:, 1], np.float32)
        held = np.zeros(out.shape, bool)
        for (rank, seen), windows in zip(holders.items(), bounds, strict=True):
            for bound, shard in zip(windows, np.split(seen[key], len(windows), axis=-1), strict=True):
                window = tuple(slice(*pair) for pair in bound)
                if held[window].any() and not np.array_equal(out[window], shard):
                    disagree.append(f"{key} of rank {rank}")
                out[window], held[window] = shard, True
        assert held.all(), f"the shards of {key} do not cover it"
        whole[key] = out
    return whole, disagree


def differences(ours: Seen, theirs: Seen) -> dict[str, float]:
    """The largest relative difference of each kind of result; for tensors, in norm."""
    curve = np.abs(ours["curve"] / theirs["curve"] - 1.0).max(axis=1)
    largest = dict(zip(CURVE, curve.tolist(), strict=True))
    for prefix, kind in KINDS.items():
        names = [name for name in ours if name.startswith(prefix)]
        if names:
            largest[kind] = max(relative(ours[name], theirs[name]) for name in names)
    return largest


def exceeded(differences: Mapping[str, float]) -> dict[str, float]:
    """The differences beyond their tolerances, NaN included."""
    return {kind: value for kind, value in differences.items() if not value <= TOLERANCES[kind]}
