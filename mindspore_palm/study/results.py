"""results.json of a study: every number of its report. All that depends on the clock is under ``times``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mindspore_palm.config import Settings
from mindspore_palm.study.costs import predicted_seconds, quantity
from mindspore_palm.study.file import COUNTS, TIMES, Comparison, Study, sizes_of
from mindspore_palm.study.runner import Finished, best_rates
from mindspore_palm.study.runs import trained_sizes, tuning_size
from mindspore_palm.study.statistics import (
    Fit,
    Interval,
    fit,
    more_compute,
    paired,
    percentiles,
    resampled,
    resampled_slopes,
)
from mindspore_palm.study.store import Store

HOLDS, NOT_SEEN, DOES_NOT_FOLLOW, DIVERGED, MEASURED = (
    "holds",
    "not seen at this size",
    "does not follow",
    "diverged",
    "measured",
)
REFUSED = "cannot be read"

Losses = dict[tuple[str, str], list[dict[str, Any]]]


def results(
    study: Study,
    quick: bool,
    store: Store,
    tuned: Sequence[Finished],
    compared: Sequence[Finished],
    measured: Sequence[Finished],
) -> dict[str, Any]:
    """Everything that a study found, as JSON.

    Args:
        study: the study as it was run, quickly or in full.
        quick: whether it was run quickly.
        store: of its results.
        tuned: results of the learning rates.
        compared: results of the runs that are compared.
        measured: results of the measurements.
    """
    losses: Losses = {}
    for one in compared:
        losses.setdefault((one.task.variant, one.task.size), []).append(one.result | {"seed": one.task.seed})
    for runs in losses.values():
        runs.sort(key=lambda run: study.seeds.index(run["seed"]))
    line = _fit(study, losses)
    rows = [row for one in study.comparisons for row in _rows(study, one, losses, line, measured)]
    by_clock = [row for row in rows if row["measure"] in TIMES]
    return {
        "title": study.title,
        "quick": quick,
        "base": study.base,
        "confidence": study.confidence,
        "seeds": study.seeds,
        "rates": study.rates.grid,
        "fingerprint": store.trained,
        "claims": {name: claim.model_dump() for name, claim in study.claims.items()},
        "text": _text(study, store.tokens),
        "networks": _networks(study),
        "tuning": _tuning(study, tuned),
        "losses": _losses(losses),
        "fit": line,
        "comparisons": [row for row in rows if row["measure"] not in TIMES],
        "times": {
            "fingerprint": store.measured,
            "comparisons": by_clock,
            "seconds": [
                {"measure": o.task.role, "size": o.task.size, "case": list(o.task.extras[:-2]), "turns": o.result}
                for o in measured
                if o.task.kind == "turns"
            ],
        },
    }


def verdict(one: Comparison, interval: Interval) -> str:
    """Whether a difference is where the claim puts it: its interval must be on that side of zero, or in its range."""
    if one.about is not None:
        return HOLDS if one.about[0] <= interval.value <= one.about[1] else DOES_NOT_FOLLOW
    if one.expects == "anything":
        return MEASURED
    wanted = 1 if one.expects == "higher" else -1
    if interval.sign == 0:
        return NOT_SEEN if interval.count > 1 else DOES_NOT_FOLLOW
    return HOLDS if interval.sign == wanted else DOES_NOT_FOLLOW


def _rows(
    study: Study, one: Comparison, losses: Losses, line: dict[str, Any] | None, measured: Sequence[Finished]
) -> Iterable[dict[str, Any]]:
    """The rows of a comparison: one for each size and case."""
    if one.measure == "loss":
        yield from (_loss_row(study, one, size, losses, line) for size in one.sizes)
    elif one.measure == "loss_beyond":
        yield from (_beyond_row(study, one, size, times, losses) for size in one.sizes for times in study.beyond)
    elif one.measure in COUNTS:
        for size in one.sizes:
            cases: list[tuple[int, ...]] = [*one.decode] or [()]
            for case in cases:
                settings = [study.settings_of(variant, size) for variant in (one.variant, study.base)]
                yield _exact(one, size, list(case), *(quantity(one.measure, each, case) for each in settings))
    elif one.measure == "predicted_step":
        for config in one.configs:
            models = (study.settings_of(v, next(iter(study.sizes))).model for v in (one.variant, study.base))
            seconds = (predicted_seconds(config, one.machine, model) for model in models)
            yield _exact(one, f"{config}, {one.machine}", [], *seconds)
    else:
        yield from _measured_rows(study, one, measured)


def _loss_row(study: Study, one: Comparison, size: str, losses: Losses, line: dict[str, Any] | None) -> dict[str, Any]:
    ours, base = losses[one.variant, size], losses[study.base, size]
    row = _row(one, size, [], unit="nats/token")
    if bad := _diverged(ours, base):
        return row | {"verdict": DIVERGED, "diverged_seeds": bad}
    losses_of, losses_of_base = ([run["loss"] for run in runs] for runs in (ours, base))
    interval = paired(losses_of, losses_of_base, study.confidence)
    row |= _interval(interval) | {"verdict": verdict(one, interval)}
    if line is not None:
        differences = np.subtract(losses_of, losses_of_base)
        row["more_compute"] = _interval(_more_compute(study, losses, differences, interval.value))
    return row


def _more_compute(study: Study, losses: Losses, differences: np.ndarray, value: float) -> Interval:
    """Percent of compute that a variant needs more, with the seeds of line and difference resampled together."""
    flops, table = _line_of(study, losses)
    draws = resampled(len(study.seeds))
    pairs = zip(resampled_slopes(flops, table, draws), differences[draws].mean(axis=1), strict=True)
    values = [more_compute(float(slope), float(difference)) for slope, difference in pairs]
    return percentiles(values, fit(flops, table).more_compute(value), study.confidence, len(study.seeds))


def _beyond_row(study: Study, one: Comparison, size: str, times: int, losses: Losses) -> dict[str, Any]:
    """Loss at positions beyond the trained length, in sequences of ``times`` that length."""
    ours, base = losses[one.variant, size], losses[study.base, size]
    row = _row(one, size, [times], unit="nats/token")
    if bad := _diverged(ours, base):
        return row | {"verdict": DIVERGED, "diverged_seeds": bad}
    parts = [[run["beyond"][str(times)] for run in runs] for runs in (ours, base)]
    if not all(map(len, (part[0] for part in parts))):
        return row | {"verdict": REFUSED}
    late, late_of_base = ([float(np.mean(buckets[len(buckets) // times :])) for buckets in part] for part in parts)
    interval = paired(late, late_of_base, study.confidence)
    means = {"ours": float(np.mean(late)), "base": float(np.mean(late_of_base))}
    return row | _interval(interval) | means | {"verdict": verdict(one, interval)}


def _measured_rows(study: Study, one: Comparison, measured: Sequence[Finished]) -> Iterable[dict[str, Any]]:
    for found in measured:
        task = found.task
        if task.role != one.measure or one.variant not in task.variants:
            continue
        if one.measure == "all_reduces":
            if list(task.extras) == list(one.configs):
                ours, base = found.result[one.variant], found.result[study.base]
                row = _exact(one, one.configs[0], [], sum(ours.values()), sum(base.values()))
                yield row | {"passes": {"ours": ours, "base": base}}
            continue
        case = task.extras[:-2]
        if task.size not in one.sizes or (one.decode and tuple(case) not in one.decode):
            continue
        ours, base = (np.asarray(found.result[name]) for name in (one.variant, study.base))
        interval = paired(list(100 * (ours / base - 1)), [0.0] * len(ours), study.confidence)
        row = _row(one, task.size, list(case), unit="%") | _interval(interval)
        medians = {"ours": float(np.median(ours)), "base": float(np.median(base))}
        yield row | medians | {"verdict": verdict(one, interval)}


def _exact(one: Comparison, size: str, case: list[int], ours: float, base: float) -> dict[str, Any]:
    value = 100 * (ours / base - 1)
    interval = Interval(value, value, value, 1)
    row = _row(one, size, case, unit="%")
    return row | {"value": value, "ours": ours, "base": base, "verdict": verdict(one, interval)}


def _row(one: Comparison, size: str, case: list[int], unit: str) -> dict[str, Any]:
    named = {"claim": one.claim, "measure": one.measure, "variant": one.variant, "size": size, "case": case}
    return named | {"unit": unit, "expects": one.expects, "about": one.about}


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(interval).items()
    }


def _diverged(*runs: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({run["seed"] for side in runs for run in side if run["diverged"]})


def _line_of(study: Study, losses: Losses) -> tuple[list[float], np.ndarray]:
    """FLOPs of a run of each size of the fit, and losses [sizes, seeds] of the base."""
    assert study.fit  # noqa: S101 - asked for only with it
    table = [[run["loss"] for run in losses[study.base, size]] for size in study.fit.sizes]
    return [run_flops(study.settings_of(study.base, size)) for size in study.fit.sizes], np.asarray(table)


def run_flops(settings: Settings) -> float:
    """FLOPs of a run: those of a token, times all tokens."""
    return settings.model.flops_per_token(settings.data.seq_len) * run_tokens(settings)


def run_tokens(settings: Settings) -> int:
    """Tokens that a run is trained on."""
    ramp, steps, length = settings.train.batch_ramp(), settings.train.steps, settings.data.seq_len
    ends = [start for start, _ in ramp[1:]] + [steps]
    taken = (size * max(0, min(end, steps) - start) for (start, size), end in zip(ramp, ends, strict=True))
    return length * sum(taken)


def _fit(study: Study, losses: Losses) -> dict[str, Any] | None:
    if study.fit is None or _diverged(*(losses[study.base, size] for size in study.fit.sizes)):
        return None
    flops, table = _line_of(study, losses)
    line: Fit = fit(flops, table)
    slopes = resampled_slopes(flops, table, resampled(len(study.seeds)))
    interval = percentiles(list(slopes), line.slope, study.confidence, len(study.seeds))
    return dataclasses.asdict(line) | {
        "slope_low": interval.low,
        "slope_high": interval.high,
        "sizes": study.fit.sizes,
        "flops": flops,
    }


def _text(study: Study, held: Mapping[str, int]) -> dict[str, Any]:
    settings = study.settings_of(study.base, next(iter(study.sizes)))
    tokens = max(run_tokens(study.settings_of(v, s)) for v in study.variants for s in trained_sizes(study, v))
    return {
        "corpus": settings.data.path,
        "train_tokens": held["train"],
        "held_out_tokens": held["held_out"],
        "tokens_of_a_run": tokens,
        "repeats": tokens > held["train"],
    }


def _networks(study: Study) -> list[dict[str, Any]]:
    rows = []
    for variant in study.variants:
        for size in sizes_of(study, variant):
            settings = study.settings_of(variant, size)
            costs = {name: quantity(name, settings) for name in COUNTS if name != "cache_bytes"}
            row = {"variant": variant, "size": size, "d_model": settings.model.d_model, "d_ff": settings.model.d_ff}
            rows.append(row | {"layers": settings.model.layers, "hold": study.variants[variant].hold} | costs)
    return rows


def _tuning(study: Study, tuned: Sequence[Finished]) -> list[dict[str, Any]]:
    chosen, grid, rows = best_rates(tuned), sorted(study.rates.grid), []
    for (variant, size), rate in chosen.items():
        ours = [one for one in tuned if (one.task.variant, one.task.size) == (variant, size)]
        losses = {
            f"{r:g}": [None if o.result["diverged"] else o.result["loss"] for o in ours if o.task.rate == r]
            for r in grid
        }
        edge = len(grid) > 1 and rate in (grid[0], grid[-1])
        used = [s for s in trained_sizes(study, variant) if tuning_size(study, variant, s) == size]
        rows.append(
            {"variant": variant, "size": size, "losses": losses, "chosen": rate, "at_edge": edge, "used_at": used}
        )
    return rows


def _losses(losses: Losses) -> list[dict[str, Any]]:
    keys = ("seed", "loss", "bits_per_byte", "diverged", "beyond")  # training curves stay with their runs
    return [
        {"variant": variant, "size": size, "runs": [{key: _json(run[key]) for key in keys} for run in runs]}
        for (variant, size), runs in losses.items()
    ]


def _json(value: Any) -> Any:
    """A value as JSON can hold it: a number that is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json(one) for one in value]
    return {name: _json(one) for name, one in value.items()} if isinstance(value, dict) else value
