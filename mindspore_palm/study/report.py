"""report.md of a study: all of results.json, for somebody who wants to check it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mindspore_palm.study.wording import (
    agreement,
    amount,
    claim_verdict,
    compute,
    difference,
    expected,
    rows_of,
    subject,
    table,
)


def report(found: Mapping[str, Any], page: Mapping[str, Any] | None = None) -> str:
    """The report in Markdown.

    Args:
        found: results.json.
        page: results.json of the published page, whose effects are looked up in ``found``; None for no such section.
    """
    return "\n\n".join([*_sections(found, page), ""]).rstrip() + "\n"


def method(found: Mapping[str, Any]) -> str:
    """How the numbers were made, in a paragraph."""
    seeds, text, percent = found["seeds"], found["text"], 100 * found["confidence"]
    repeats = "so a run sees some of it again" if text["repeats"] else "so no run sees any of it twice"
    expecting = sum(row["expects"] != "anything" for claim in found["claims"] for row in rows_of(found, claim))
    fingerprint, times = found["fingerprint"], found["times"]["fingerprint"]
    return (
        f"Every network was trained with seeds {', '.join(map(str, seeds))}. A seed decides the initial weights and "
        "the order of the text, the same for every network, so differences are taken seed by seed. The interval is "
        f"Student's, of the mean of these differences, with {percent:g} % confidence, over {len(seeds)} seeds; of "
        "times, over turns. It says how sure the mean is for other seeds, on this text and at this size. A difference "
        "counts as seen if its interval is on one side of zero; one is called exact if it is arithmetic. The file of "
        f"the study decided beforehand which {expecting} differences are tests of a claim. They were not corrected for "
        f"their number: of twenty differences that are not there, about one is seen. {_rates(found)}\n\n"
        f"Text: {text['corpus']}, {text['train_tokens']:,} tokens to train on; a run takes "
        f"{text['tokens_of_a_run']:,}, {repeats}. Held out: {text['held_out_tokens']:,} tokens, all of which are "
        f"scored. Machine of the training: {fingerprint['machine']}; {fingerprint['libraries']}. "
        f"Machine of the times: {times['machine']}; {times['libraries']}."
    )


def _rates(found: Mapping[str, Any]) -> str:
    if len(found["rates"]) == 1:
        return f"Every network has the same peak learning rate, {found['rates'][0]:g}: none was tuned."
    rates = ", ".join(f"{rate:g}" for rate in sorted(found["rates"]))
    ends = ", ".join(f"{row['variant']} at {row['size']}" for row in found["tuning"] if row["at_edge"])
    caution = f" An end of the grid was the best for {ends}, so another rate may be better there." if ends else ""
    return f"Learning rates were tuned for every network alike, over {rates}, with other seeds.{caution}"


def _sections(found: Mapping[str, Any], page: Mapping[str, Any] | None) -> Iterator[str]:
    base = found["base"]
    yield f"# {found['title']}{' (quick)' if found['quick'] else ''}"
    yield method(found)
    claims = found["claims"]
    yield "## Claims"
    yield table(
        ["claim", "what is said", "verdict"],
        [[one["title"], one["says"], claim_verdict(rows_of(found, name))] for name, one in claims.items()],
    )
    if page is not None:
        yield "## Beside the published page"
        lines = agreement(found, page)
        here = [line[-1] for line in lines if line[-1]]
        yield (
            f"{here.count('yes')} of the {len(here)} effects that the page shows and that are made here have the same "
            "direction."
        )
        yield table(["effect", "on the page", "here", "same direction"], lines)
    for name, one in claims.items():
        yield f"## {one['title']}"
        if one["note"]:
            yield one["note"]
        yield table(
            [f"difference from {base}", "expected", "measured", "as compute", "verdict"],
            [
                [subject(row, base), expected(row), difference(row), compute(row), row["verdict"]]
                for row in rows_of(found, name)
            ],
        )
    yield from _networks(found)
    yield from _tuning(found)
    yield from _losses(found)
    if found["fit"]:
        yield "## Loss over compute"
        yield fitted(found)
    yield from _times(found)


def fitted(found: Mapping[str, Any]) -> str:
    """The line of loss over compute, in a paragraph."""
    line = found["fit"]
    low, high = line["flops"][0], line["flops"][-1]
    return (
        f"loss = {line['level']:.3f} - {line['slope']:.4f} ln(FLOPs of a run), by least squares over the mean losses "
        f"of {found['base']} at {', '.join(line['sizes'])}, from {low:.2g} to {high:.2g} FLOPs. The slope is "
        f"{line['slope_low']:.4f} to {line['slope_high']:.4f} (bootstrap over seeds, {100 * found['confidence']:g} %); "
        f"the farthest mean is {line['residual']:.4f} off the line. A difference d in loss is as much as "
        f"100 (e^(d / {line['slope']:.4f}) - 1) % more compute."
    )


def _networks(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Networks"
    head = ["network", "size", "held equal", "layers", "d_model", "d_ff", "parameters", "FLOPs/token"]
    head += ["attention's parameters", "attention's FLOPs/token", "optimizer state, bytes"]
    keys = ("parameters", "flops", "attention_parameters", "attention_flops", "state_bytes")
    yield table(
        head,
        [
            [
                row["variant"],
                row["size"],
                row["hold"] if row["variant"] != found["base"] else "",
                row["layers"],
                row["d_model"],
                row["d_ff"],
                *(amount(row[key]) for key in keys),
            ]
            for row in found["networks"]
        ],
    )


def _tuning(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Learning rates"
    if not found["tuning"]:
        yield _rates(found)
        return
    yield (
        "Held-out loss by peak learning rate, seed by seed; d is a run that diverged. The lowest mean is taken. Where "
        "it is at an end of the grid, a better rate may lie beyond it."
    )
    rates = list(found["tuning"][0]["losses"])
    yield table(
        ["network", "tuned at", "used at", *rates, "taken"],
        [
            [
                row["variant"],
                row["size"],
                ", ".join(row["used_at"]),
                *(" ".join("d" if v is None else f"{v:.4f}" for v in row["losses"][rate]) for rate in rates),
                f"{row['chosen']:g}{' (end of the grid)' if row['at_edge'] else ''}",
            ]
            for row in found["tuning"]
        ],
    )


def _losses(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Held-out loss by seed, nats/token"
    seeds = found["seeds"]
    yield table(
        ["network", "size", *(f"seed {seed}" for seed in seeds), "mean", "bits/byte"],
        [
            [
                row["variant"],
                row["size"],
                *("diverged" if run["diverged"] else f"{run['loss']:.4f}" for run in row["runs"]),
                _mean([None if run["diverged"] else run["loss"] for run in row["runs"]]),
                _mean([None if run["diverged"] else run["bits_per_byte"] for run in row["runs"]]),
            ]
            for row in found["losses"]
        ],
    )


def _mean(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{sum(numbers) / len(numbers):.4f}" if len(numbers) == len(values) else "diverged"


def _times(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["times"]["seconds"]:
        return
    yield "## Times, measured in turns"
    where = found["times"]["fingerprint"]
    yield (
        f"Medians of the turns, in milliseconds, and the fastest and slowest turn. Machine: {where['machine']}; "
        f"{where['libraries']}."
    )
    yield table(
        ["measure", "size", "batch and context", "network", "median", "fastest to slowest", "tokens/s"],
        [
            [
                row["measure"],
                row["size"],
                " x ".join(map(str, row["case"])),
                name,
                f"{1e3 * sorted(turns)[len(turns) // 2]:.3f}",
                f"{1e3 * min(turns):.3f} to {1e3 * max(turns):.3f}",
                f"{row['case'][0] / sorted(turns)[len(turns) // 2]:,.0f}" if row["case"] else "",
            ]
            for row in found["times"]["seconds"]
            for name, turns in row["turns"].items()
        ],
    )
