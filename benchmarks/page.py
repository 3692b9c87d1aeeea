"""The table of training steps in docs/benchmarks.md, made of the JSON of benchmarks/train_step.py.

    python benchmarks/page.py docs/results/train_step.json

The page holds it between two marks, and nothing else of the page is changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
START, END = "<!-- training steps: benchmarks/page.py -->", "<!-- end of training steps -->"
HEAD = "d_model, layers, heads, head_dim, vocab, length, batch"


def table(found: dict) -> str:
    """Machine and table, as the page shows them."""
    names = list(found["shapes"][0]["figures"])
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    lines = [
        f"{found['processors']} cores of {found['processor']}, {found['date']}, commit {found['commit']}; {versions}; "
        f"{found['rounds']} rounds of {found['steps']} steps:",
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


def with_table(page: str, found: dict) -> str:
    """The page, with the table of these results."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table(found)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), json.loads(Path(sys.argv[1]).read_bytes())))
