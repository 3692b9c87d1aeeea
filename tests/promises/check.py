"""The promises of the README and its pages, from the command line.

python tests/promises/check.py                  what is wrong: unclassified and stale sentences, evidence that is gone
python tests/promises/check.py --list           every promise, its tests, and marks that keep them out by default
python tests/promises/check.py --untested       what no test shows
python tests/promises/check.py --update         writes the ledger in the order of the pages, after one changed
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from promises.ledger import FOLDER, classified, classified_texts, marks_of, problems, read_ledger, updated, written


def main() -> int:
    """Prints; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    for name in ("--list", "--untested", "--update"):
        action.add_argument(name, action="store_true")
    arguments = parser.parse_args()
    sections, ledger = classified(classified_texts()), read_ledger()
    if arguments.update:
        ledger = updated(sections, ledger)
        for file in FOLDER.rglob("*.yaml"):
            file.unlink()
        for name, entries in ledger.items():
            file = FOLDER / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(written(entries), encoding="utf-8")
    if arguments.list or arguments.untested:
        describe(ledger, arguments.untested)
        return 0
    found = problems(sections, ledger)
    print("\n".join([*found, summary(ledger)]))
    return bool(found)


def describe(ledger: dict, only_untested: bool) -> None:
    """Promises, with their evidence."""
    for name, entries in ledger.items():
        print(f"\n## {name}")
        for entry in entries:
            if entry.kind != "promises" or (only_untested and not entry.untested):
                continue
            print(f"\n{entry.says}")
            if not only_untested:
                for test in entry.tests:
                    print(f"    {test}{''.join(f' [{mark}]' for mark in marks_of(test))}")
                for command in entry.measured:
                    print(f"    measured: {command}")
                if entry.source:
                    print(f"    source: {entry.source}")
            print(f"    untested: {entry.untested}\n" if entry.untested else "", end="")


def summary(ledger: dict) -> str:
    """Counts, in a line."""
    entries = [entry for entries in ledger.values() for entry in entries]
    kinds = Counter(entry.kind for entry in entries)
    promises = [entry for entry in entries if entry.kind == "promises"]
    tested = [entry for entry in promises if entry.tests]
    by_default = [entry for entry in tested if not all(map(marks_of, entry.tests))]
    tests = {test for entry in promises for test in entry.tests}
    others = {
        name: sum(bool(getattr(entry, name)) for entry in promises) for name in ("measured", "source", "untested")
    }
    return (
        f"{len(entries)} sentences: {kinds['promises']} promise something, {kinds['explains']} explain; "
        f"of the promises, {len(tested)} have tests ({len(tests)} tests; for {len(by_default)} some run by default), "
        f"{others['measured']} name a measurement, {others['source']} a source; "
        f"of {others['untested']} a part is untested"
    )


if __name__ == "__main__":
    sys.exit(main())
