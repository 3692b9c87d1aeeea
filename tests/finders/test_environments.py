"""Each command in each environment: the same result as in a clean one, or one sentence with exit code 2.

A sample by default; all of them by ``-m slow``. ``MINDSPORE_PALM_ENVIRONMENTS`` sets how many pairs are sampled, and
``MINDSPORE_PALM_SEED`` which.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from finders.environments import CASES, MISSING, NOBODY, READ_ONLY, Case

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = int(os.environ.get("MINDSPORE_PALM_ENVIRONMENTS", "4"))
SEED = int(os.environ.get("MINDSPORE_PALM_SEED", "20220405"))
PATIENCE = 900  # seconds: far more than any of them takes, on a busy machine, too
TINY = ["model.layers=1", "model.d_model=16", "model.heads=2", "model.head_dim=8", "model.d_ff=32"]
TINY += ["model.vocab_size=300", "data.seq_len=16", "data.path=text.txt", "data.prepared=prepared"]
TRAIN = [*TINY, "train.batch_size=4", "train.steps=2", "train.eval_every=0", "train.checkpoint_every=1"]
TRAIN += ["train.output=out", "train.device=CPU", "train.peak_tflops=1"]
MESH = ["model.layers=1", "model.d_model=64", "model.heads=4", "model.head_dim=16", "model.d_ff=128"]
MESH += ["model.vocab_size=512", "data.seq_len=32", "train.batch_size=8", "parallel.data=2", "parallel.model=2"]
VARIES = ("checkpoint", "seconds", "memory_bytes")  # of results in JSON: names of folders, and what compiling took
COMMANDS = {
    "train": [*TRAIN],
    "prepare_data": [*TINY],
    "generate": ["--checkpoint", "{run}", "emma", "--max-tokens", "12", "--temperature", "0", "--device", "CPU"],
    "evaluate": ["--checkpoint", "{run}", "--data", "held_out.txt", "--json", "scores.json"],
    "plan": ["--config", str(ROOT / "yaml" / "palm_8b.yaml"), "--json", "plan.json", "--charts", "charts"],
    "dry_run": [*MESH, "--whole", "--json", "ledger.json"],
}
PRINTS = ("generate", "evaluate", "plan", "dry_run")  # their standard output is what they are for
READER_GONE = 141  # what a shell reports of a command whose reader went away
CLEAN = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")  # what every one has, unless a case says otherwise


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None
    """None: it had to be killed."""
    out: str
    err: str
    result: dict[str, str]
    """Digest of what it wrote, by name."""


def variables(case: Case, folder: Path) -> dict[str, str]:
    if "*" in case.variables:
        found = {}
    else:
        found = {name: os.environ[name] for name in CLEAN if name in os.environ}
        if (cache := os.environ.get("MINDSPORE_PALM_CACHE")) is not None:
            found["MINDSPORE_PALM_CACHE"] = cache
    for name, value in case.variables.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value.replace(READ_ONLY, str(folder / "read_only"))
    return found


def run(name: str, case: Case, trained: Path | None, folder: Path) -> Outcome:
    """Runs one command in one environment, in a folder of its own."""
    work = folder / (case.folder if case.folder not in ("", "deleted", "read-only") else "work")
    work.mkdir(parents=True)
    (folder / "read_only").mkdir()
    shutil.copy(folder.parent / "text.txt", work)
    shutil.copy(folder.parent / "text.txt", work / "held_out.txt")
    if case.user is not None:
        for path in (folder, work):
            os.chown(path, case.user, case.user)
    if case.folder == "read-only":
        os.chown(work, 0, 0)
        work.chmod(0o555)
    words = [word.replace("{run}", str(trained)) for word in COMMANDS[name]]
    streams = {number: case.streams.get(number, "") for number in (0, 1, 2)}
    opened = {number: open_stream(kind, number) for number, kind in streams.items()}

    def enter() -> None:
        if case.folder == "deleted":
            shutil.rmtree(work)
        if case.umask is not None:
            os.umask(case.umask)
        for name_of_signal in case.ignored:
            signal.signal(getattr(signal, name_of_signal), signal.SIG_IGN)
        for limit, most in case.limits.items():
            resource.setrlimit(getattr(resource, limit), (most, most))
        if case.user is not None:
            os.setgroups([])
            os.setgid(case.user)
            os.setuid(case.user)
        for number, kind in streams.items():
            if kind == "closed":
                os.close(number)

    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run" / f"{name}.py"), *words],
        cwd=work,
        env=variables(case, folder),
        stdin=opened[0],
        stdout=opened[1],
        stderr=opened[2],
        preexec_fn=enter,
        start_new_session=True,
        restore_signals="SIGPIPE" not in case.ignored,
    )
    for stream in opened.values():
        if stream not in (subprocess.PIPE, subprocess.DEVNULL):
            os.close(stream)
    try:
        out, err = process.communicate(timeout=PATIENCE)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = None
    if case.folder == "read-only":
        work.chmod(0o755)
    said = (out or b"").decode(errors="replace")
    return Outcome(code, said, (err or b"").decode(errors="replace"), result(name, work, said if out else ""))


def open_stream(kind: str, number: int) -> int:
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if kind == "gone":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    return subprocess.DEVNULL if kind in ("null", "closed") or not number else subprocess.PIPE


def result(name: str, work: Path, said: str) -> dict[str, str]:
    """What a command left, without times and names of folders."""
    if not work.exists():
        return {}
    found: dict[str, str] = {}
    if name == "train" and (work / "out" / "final").exists():
        found["weights"] = digest((work / "out" / "final" / "model.safetensors").read_bytes())
        rows = (work / "out" / "metrics.csv").read_text().splitlines()
        found["rows"] = digest("\n".join(",".join(row.split(",")[:6]) for row in rows).encode())
    if name == "prepare_data":
        for file in sorted((work / "prepared").glob("*/*/*")):
            found["/".join(file.parts[-2:])] = digest(file.read_bytes())
    if name == "generate" and said:
        found["text"] = digest(said.encode())
    for made in ("scores.json", "plan.json", "ledger.json"):
        if (file := work / made).exists():
            values = {key: value for key, value in json.loads(file.read_text()).items() if key not in VARIES}
            found[made] = digest(json.dumps(values, sort_keys=True).encode())
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def judge(name: str, case: Case, outcome: Outcome, expected: Outcome) -> str:
    """ "same" or "refused", or the fault in words."""
    said = outcome.out + outcome.err
    if outcome.code is None:
        return "fault: hangs"
    if "Traceback (most recent call last)" in said or "Exception ignored" in said:
        return f"fault: traceback, exit {outcome.code}: {last_line(said)}"
    prints_nowhere = name in PRINTS and case.streams.get(1) in ("full", "closed", "gone")
    if outcome.code == 0:
        if prints_nowhere:
            return "fault: exit 0, and nobody has read the result"
        same = (case.streams.get(1) == "null" and name == "generate") or outcome.result == expected.result
        return "same" if same else f"fault: exit 0 with another result: {outcome.result} for {expected.result}"
    if prints_nowhere and case.streams[1] == "gone" and outcome.code == READER_GONE:
        return "refused"
    if outcome.code == 2:
        sentences = re.findall(r"^error: .+$", outcome.err, re.MULTILINE)
        if len(sentences) == 1 or case.streams.get(2, "null" if not outcome.err else ""):
            return "refused"
        return f"fault: exit 2 with {len(sentences)} sentences: {last_line(said)}"
    return f"fault: exit {outcome.code}: {last_line(said)}"


def last_line(said: str) -> str:
    return (said.strip().splitlines() or [""])[-1][:200]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where nobody may read, too: pytest's folders are their owner's alone."""
    import tempfile

    home = Path(tempfile.mkdtemp(prefix="environments-"))
    home.chmod(0o755)
    words = [
        "emma",
        "olivia",
        "ava",
        "noah",
        "liam",
        "sophia",
        "isabella",
        "charlotte",
        "amelia",
        "lucas",
        "ethan",
        "mason",
    ]
    draws = random.Random(1)
    text = "".join(f"{' '.join(draws.choices(words, k=5))} {draws.randrange(100)}é\n" for _ in range(400))
    (home / "text.txt").write_text(text, encoding="utf-8")
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def expected(home):
    """A clean environment's outcome of each command, computed when it is asked for."""
    found: dict[str, Outcome] = {}

    def of(name: str) -> Outcome:
        if name not in found:
            trained = home / "clean-train" / "work" / "out"
            if name in ("generate", "evaluate"):
                of("train")
            found[name] = run(name, Case(), trained, home / f"clean-{name}")
            assert found[name].code == 0, found[name].err
            assert found[name].result, name
        return found[name]

    return of


def can_run(case: Case) -> bool:
    """Other users need root to become them, and must be able to read this package."""
    if case.user is None:
        return True
    places = (ROOT, Path(sys.executable).absolute(), Path(sys.prefix), Path(sys.base_prefix))
    return os.getuid() == 0 and all(p.stat().st_mode & 0o5 == 0o5 for place in places for p in (place, *place.parents))


@pytest.fixture(scope="module")
def counts():
    """Verdicts of all that was run, printed at the end."""
    counts: Counter[str] = Counter()
    yield counts
    print(
        f"\n{counts.total()} commands in environments: {', '.join(f'{n} {what}' for what, n in counts.most_common())}"
    )


def faults_of(pairs: list[tuple[str, str]], home: Path, expected, counts: Counter[str]) -> list[str]:
    """Runs commands in environments, and counts how they end."""
    faults = []
    for name, environment in pairs:
        case = CASES[environment]
        if not can_run(case):
            counts["not run, as it needs root"] += 1
            continue
        clean = expected(name)
        folder = home / f"{name}-{counts.total()}"
        outcome = run(name, case, home / "clean-train" / "work" / "out", folder)
        shutil.rmtree(folder, ignore_errors=True)
        verdict = judge(name, case, outcome, clean)
        counts[verdict.split(":")[0]] += 1
        if verdict.startswith("fault"):
            faults.append(f"{name}, {environment}: {verdict}")
    return faults


PAIRS = [(name, environment) for environment in CASES for name in COMMANDS]


@pytest.mark.slow
def test_a_sample_of_commands_works_or_refuses_in_odd_environments(home, expected, counts):
    assert not faults_of(random.Random(SEED).sample(PAIRS, SAMPLE), home, expected, counts)


@pytest.mark.slow
@pytest.mark.parametrize("environment", CASES)
def test_each_command_gives_the_same_result_or_one_sentence(home, expected, counts, environment):
    faults = faults_of([(name, environment) for name in COMMANDS], home, expected, counts)
    assert not faults, "\n".join(faults)


def test_the_table_means_what_it_says(tmp_path):
    """A missing folder cannot be made, and the users of the table are not root."""
    with pytest.raises(OSError, match="Not a directory"):
        Path(MISSING).mkdir(parents=True)
    assert all(case.user != 0 for case in CASES.values())
    assert NOBODY in {case.user for case in CASES.values()}
