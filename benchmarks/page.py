"""The tables of docs/benchmarks.md, made of the JSON of benchmarks/train_step.py and benchmarks/decode.py.

    python benchmarks/page.py docs/results/train_step.json
    python benchmarks/page.py docs/results/decode.json

The page holds each between two marks, and nothing else of the page is changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
HEAD = "d_model, layers, heads, head_dim, vocab, length, batch"


def table(found: dict) -> str:
    """Machine and table of training steps, as the page shows them."""
    names = list(found["shapes"][0]["figures"])
    lines = [
        f"{machine(found)} of {found['steps']} steps or more:",
        "",
        f"| {HEAD} | peak | this package | of the peak | {' | '.join(names[1:])} |",
        "|---|" + "---:|" * (len(names) + 2),
    ]
    for one in found["shapes"]:
        ours, *others = one["figures"].values()
        cells = [
            ", ".join(map(str, one["shape"])),
            f"{one['peak_gflops']:.0f} GFLOP/s",
            f"{ours['ms']:.1f} ms",
            f"{ours['of_peak']:.0%}",
            *(f"{other['times_ours']:.2f}x" for other in others),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def decoding_table(found: dict) -> str:
    """Machine and table of decoding and of prompts, as the page shows them."""
    results = found["decoding"] + found["prompts"]
    names = list(dict.fromkeys(name for one in results for name in one["figures"]))
    lines = [
        f"{machine(found)}:",
        "",
        f"| tokens/s | memory | matmul | limit | this package | of the limit | {' | '.join(names[1:])} |",
        "|---|" + "---:|" * (len(names) + 4),
    ]
    for one in results:
        ours, figures = one["figures"][names[0]], one["figures"]
        prompt = "prompt" in one
        cells = [
            f"prompt of {one['prompt']}" if prompt else f"batch {one['batch']}, context {one['context']}",
            "" if prompt else f"{one['gigabytes_per_second']:.0f} GB/s",
            f"{one['peak_gflops']:.0f} GFLOP/s",
            f"{one['limit']:,.0f}" + ("" if prompt else f" by {one['limited_by']}"),
            f"{ours['tokens_per_second']:,.0f}",
            f"{ours['of_limit']:.0%} ({ours['of_fastest']:.0%})",
            *(f"{figures[name]['times_ours']:.2f}x" if name in figures else "" for name in names[1:]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(found: dict) -> str:
    """Processor, date, commit, versions and rounds."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    host = f"{found['processors']} cores of {found['processor']}, {found['date']}, commit {found['commit']}"
    return f"{host}; {versions}; {found['rounds']} rounds"


TABLES = {"shapes": ("training steps", table), "decoding": ("decoding", decoding_table)}
"""For the name of a list in the results: what the marks say, and the table."""


def with_table(page: str, found: dict) -> str:
    """The page, with the table of these results."""
    title, make = next(TABLES[name] for name in TABLES if name in found)
    start, end = f"<!-- {title}: benchmarks/page.py -->", f"<!-- end of {title} -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n\n{make(found)}\n\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), json.loads(Path(sys.argv[1]).read_bytes())))
