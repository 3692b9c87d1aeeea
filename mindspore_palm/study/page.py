"""The results page of the documentation, generated from results.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mindspore_palm.study.pictures import NAMES
from mindspore_palm.study.report import fitted, method
from mindspore_palm.study.results import HOLDS, MEASURED
from mindspore_palm.study.wording import (
    amount,
    claim_verdict,
    compute,
    difference,
    expected,
    rows_of,
    subject,
    table,
)

COMMAND = "python run/study.py yaml/studies/article.yaml"
VERDICTS = """How to read a verdict. **Holds**: every difference that the claim predicts was seen. **Holds in part**:
some were. **Not seen at this size**: no interval left zero; larger networks may differ. **Does not follow**: the
measurement, or arithmetic, says otherwise."""


def page(found: Mapping[str, Any], pictures: str = "results") -> str:
    """The page in Markdown.

    Args:
        found: results.json.
        pictures: the folder of the pictures, as the page links it.
    """
    return "\n\n".join(_sections(found, pictures)) + "\n"


def _sections(found: Mapping[str, Any], pictures: str) -> Iterator[str]:
    base, claims = found["base"], found["claims"]
    yield "# The claims, measured"
    yield (
        "<!-- Generated from results/results.json by python run/study.py --page docs/results/results.json: change "
        "that, not this. -->"
    )
    trained = {(row["variant"], row["size"]) for row in found["losses"]}
    sizes = sorted(row["parameters"] for row in found["networks"] if (row["variant"], row["size"]) in trained)
    yield (
        "What an article says of PaLM, and what this project measures. The networks that are trained have "
        f"{amount(sizes[0])} to {amount(sizes[-1])} parameters; PaLM has up to 540 billion. What is seen here is true "
        "at these sizes, and what is not seen may still be true at others. Arithmetic is true at any size."
    )
    yield VERDICTS
    yield table(
        ["claim", "what the article says", "measured", "verdict", "command"],
        [_summary(found, name, one) for name, one in claims.items()],
    )
    yield "![Differences in held-out loss, with intervals and every seed](" + f"{pictures}/{NAMES['differences']})"
    yield "## How it was measured"
    yield method(found)
    for name, one in claims.items():
        yield f"## {one['title']}: {claim_verdict(rows_of(found, name))}"
        yield f"The article: {one['says']}"
        if one["note"]:
            yield one["note"]
        yield table(
            [f"difference from {base}", "expected", "measured", f"{base}", "variant", "as compute", "verdict"],
            [
                [
                    subject(row, base),
                    expected(row),
                    difference(row),
                    _side(row, "base"),
                    _side(row, "ours"),
                    compute(row),
                    row["verdict"],
                ]
                for row in rows_of(found, name)
            ],
        )
        if name in NAMES and name != "differences":
            yield f"![{one['title']}]({pictures}/{NAMES[name]})"
    if found["fit"]:
        yield "## As compute"
        yield fitted(found)
        yield f"![Loss over compute, every seed]({pictures}/{NAMES['fit']})"
    yield "## Run it yourself"
    yield (
        f"`{COMMAND}` makes all of this; killed, it resumes. `{COMMAND} --quick` ends in ten minutes on two cores, "
        "with fewer seeds, steps and sizes, and says of every effect on this page whether it has the same direction. "
        f"`report.md` beside its results has every run; [results.json]({pictures}/results.json) is what this page is "
        "made of."
    )


def _summary(found: Mapping[str, Any], name: str, claim: Mapping[str, Any]) -> list[str]:
    """A line of the first table: the row of each measure that says most, at the largest size."""
    rows = rows_of(found, name)
    tested: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["verdict"] != MEASURED:
            tested.setdefault((row["measure"], row["variant"]), []).append(row)
    said = []
    for group in tested.values():
        holding = sum(row["verdict"] == HOLDS for row in group)
        of_all = f"; holds in {holding} of {len(group)} rows below" if len(group) > 1 else ""
        said.append(f"{subject(group[-1], found['base'])}: {difference(group[-1])}{of_all}")
    return [claim["title"], claim["says"], "<br>".join(said), f"**{claim_verdict(rows)}**", f"`{COMMAND}`"]


def _side(row: Mapping[str, Any], side: str) -> str:
    if "passes" in row:
        return " + ".join(str(count) for count in row["passes"][side].values())
    value = row.get(side)
    if value is not None and row["measure"].endswith("_time"):
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3f} s" if value is not None and row["measure"] == "predicted_step" else _number(row, value)


def _number(row: Mapping[str, Any], value: float | None) -> str:
    return f"{value:.4f}" if value is not None and row["unit"] != "%" else amount(value)
