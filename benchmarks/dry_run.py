"""Processor time and memory of MindSpore's phases while a dry run compiles, by MindSpore's own log.

    python benchmarks/dry_run.py [--config yaml/palm_540b.yaml] [--layers 12] [--target GPU] [--least 0.02]

Phases are listed in the order in which they begin, with the processor time at that moment, and what each takes in all;
passes inside a phase are listed like phases. The resident memory is that before and after it. A phase that does not end
is not listed, so that a compilation may be stopped, or run out of memory, and show how far it came.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from mindspore_palm.dry_run.compile import child_environment  # noqa: E402 - found by the path above
from mindspore_palm.settings import load_settings, settings_to_yaml  # noqa: E402

LOG = {"MS_SUBMODULE_LOG_v": "{PIPELINE:1,OPTIMIZER:1}"}
MARK = re.compile(
    r"Status record: (?P<a>start|end) (?P<action>\w+) action"
    r"|\] Pass (?P<pass>\S+) (?P<b>start|end)"
    r"|\] (?P<c>Start|End) (?P<step>\S+?)(?:\.(?:un)?changed)?$"
)


def phases(process):
    """Name, processor seconds at the start and in all, and bytes before and after, of each phase that ends."""
    watched, running, found = psutil.Process(process.pid), {}, {}
    for line in process.stderr:
        if not (mark := MARK.search(line.rstrip())):
            continue
        name = mark["action"] or mark["pass"] or mark["step"]
        try:
            times, memory = watched.cpu_times(), watched.memory_info().rss
        except psutil.Error:
            continue
        now = times.user + times.system
        if (mark["a"] or mark["b"] or mark["c"]).lower() == "start":
            running[name] = now, memory
        elif name in running:
            start, before = running.pop(name)
            first, seconds, least, _ = found.get(name, (start, 0.0, before, 0))
            found[name] = first, seconds + now - start, least, memory
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "yaml" / "palm_540b.yaml"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--target", default="GPU")
    parser.add_argument("--least", type=float, default=0.02, help="share of the time from which on a phase is listed")
    arguments = parser.parse_args()
    settings, _ = load_settings(arguments.config, [f"model.layers={arguments.layers}"])
    code = "from mindspore_palm.dry_run.compile import _compile; _compile()"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", code, arguments.target, "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=folder,
            env={**child_environment(folder), **LOG},
        )
        process.stdin.write(settings_to_yaml(settings))
        process.stdin.close()
        found = phases(process)
        peak = re.findall(r"peak (\d+)", process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    ended = "" if status == 0 else f", ended early with status {status}"
    print(f"{arguments.layers} layers: {seconds:.0f} s, {int(peak[-1]) / 1e9 if peak else 0:.2f} GB{ended}")
    print("phase, begins at, takes, share, GB before and after")
    for name, (start, took, before, after) in sorted(found.items(), key=lambda item: item[1][0]):
        if took >= arguments.least * seconds:
            print(f"  {name:<44}{start:8.1f}{took:8.1f}{took / seconds:8.1%}{before / 1e9:8.2f}{after / 1e9:7.2f}")


if __name__ == "__main__":
    main()
