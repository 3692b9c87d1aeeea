"""Numbers, comparisons and claims of results.json in words, for the report and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mindspore_palm.study.results import DIVERGED, DOES_NOT_FOLLOW, HOLDS, MEASURED, NOT_SEEN, REFUSED

IN_PART = "holds in part"
MEASURES = {
    "loss": "held-out loss",
    "loss_beyond": "loss beyond the trained length",
    "step_time": "time of a training step",
    "update_time": "time of the optimizer's update",
    "decode_time": "time of a decoded token",
    "parameters": "parameters",
    "flops": "FLOPs/token",
    "attention_parameters": "parameters of the attention",
    "attention_flops": "FLOPs/token of the attention",
    "kv_flops": "FLOPs/token of the projections to keys and values",
    "state_bytes": "bytes of optimizer state in a checkpoint",
    "cache_bytes": "bytes of the cache",
    "predicted_step": "predicted time of a training step",
    "all_reduces": "all-reduces of activations in a layer",
}
"""Each measure, as the start of a sentence's subject."""


def all_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every row of comparisons, with those that depend on the clock."""
    return [*found["comparisons"], *found["times"]["comparisons"]]


def rows_of(found: Mapping[str, Any], claim: str) -> list[dict[str, Any]]:
    """Rows of a claim."""
    return [row for row in all_rows(found) if row["claim"] == claim]


def claim_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """The verdict of a claim, of its rows that expect something.

    All hold: it holds. Some do: it holds in part. None does: it does not follow if a row contradicts it, and else it is
    not seen at these sizes.
    """
    verdicts = [row["verdict"] for row in rows if row["verdict"] not in (MEASURED, REFUSED)]
    if not verdicts:
        return MEASURED
    if all(one == HOLDS for one in verdicts):
        return HOLDS
    if HOLDS in verdicts:
        return IN_PART
    return DOES_NOT_FOLLOW if DOES_NOT_FOLLOW in verdicts else DIVERGED if DIVERGED in verdicts else NOT_SEEN


def difference(row: Mapping[str, Any]) -> str:
    """A difference with its interval, such as ``+0.012 (+0.004 to +0.020) nats/token``."""
    if row["verdict"] == DIVERGED:
        return f"diverged with seeds {', '.join(map(str, row['diverged_seeds']))}"
    if row["verdict"] == REFUSED:
        return "learned positions end at the trained length: there is nothing to measure"
    unit, digits = row["unit"], "+.4f" if row["unit"] != "%" else "+.1f"
    if "passes" in row:
        ours, base = (" + ".join(map(str, row["passes"][side].values())) for side in ("ours", "base"))
        return f"{ours} against {base}, forward + backward, exactly"
    if "low" not in row:
        text = f"{row['value']:{digits}} {unit}, {'predicted' if row['measure'] == 'predicted_step' else 'exactly'}"
        saved = 100 * (1 - row["base"] / row["ours"])
        return f"{text}: the base saves {saved:.1f} % of it" if saved > 0 else text
    return f"{row['value']:{digits}} ({row['low']:{digits}} to {row['high']:{digits}}) {unit}"


def subject(row: Mapping[str, Any], base: str) -> str:
    """The comparison in words."""
    where = row["size"]
    if row["measure"] == "loss_beyond":
        where += f", {row['case'][0]} times the trained length"
    elif row["case"]:
        where += f", batch {row['case'][0]}, context {row['case'][1]}"
    return f"{MEASURES[row['measure']]}, {row['variant']} against {base}, {where}"


def compute(row: Mapping[str, Any]) -> str:
    """A difference in loss as compute."""
    if not (more := row.get("more_compute")):
        return ""
    if more["low"] is None or more["high"] is None:
        return f"{more['value']:+.0f} %"
    return f"{more['value']:+.0f} % ({more['low']:+.0f} to {more['high']:+.0f})"


def expected(row: Mapping[str, Any]) -> str:
    """Where the claim puts the variant."""
    if row["about"]:
        return f"{row['about'][0]:+g} to {row['about'][1]:+g} %"
    return row["expects"]


def amount(value: float | None) -> str:
    """A quantity as people write it: 12,345 or 3.21e+12."""
    if value is None:
        return ""
    if value >= 1e10:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def agreement(found: Mapping[str, Any], page: Mapping[str, Any]) -> list[list[str]]:
    """Each effect that a page shows beside the same difference found here: what, there, here, whether it agrees.

    An effect is shown where its interval, or its exact value, lies on one side of zero. Here its value counts, at the
    largest size at which the page shows it. If there is none, it is the largest size that the page does not have; at
    sizes where the page has it and does not show it, there is nothing to agree with.
    """
    lines = []
    ours = _by_kind(all_rows(found))
    for key, rows in _by_kind(all_rows(page)).items():
        shown = [row for row in rows if _is_shown(row)]
        if not shown or len({row["value"] > 0 for row in shown}) > 1:
            continue
        here = [row for row in ours.get(key, []) if row.get("value") is not None]
        same = [row for row in here if row["size"] in {one["size"] for one in shown}]
        same = same or [row for row in here if row["size"] not in {one["size"] for one in rows}]
        there = shown[-1]
        if not same:
            lines.append([subject(there, page["base"]), difference(there), "not made here", ""])
            continue
        agrees = (same[-1]["value"] > 0) == (there["value"] > 0)
        line = [subject(there, page["base"]), difference(there), f"{same[-1]['size']}: {difference(same[-1])}"]
        lines.append([*line, "yes" if agrees else "NO"])
    return lines


def _is_shown(row: Mapping[str, Any]) -> bool:
    """Whether a claim's difference is on one side of zero."""
    if row.get("value") in (None, 0) or row["expects"] == "anything":
        return False
    return "low" not in row or row["low"] > 0 or row["high"] < 0


def _by_kind(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        case = "" if row["measure"] in ("decode_time", "cache_bytes") else str(row["case"])
        kinds.setdefault((row["claim"], row["measure"], row["variant"], case), []).append(row)
    return kinds
