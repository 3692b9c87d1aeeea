"""Streams that are closed, full or gone: a lost log does not end a run, and lost results are a failure."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from mindspore_palm import console

ROOT = Path(__file__).resolve().parents[2]
RUNS = """
import sys, time
from mindspore_palm.launch.command import run_process
from mindspore_palm.console import say, Bar

def main():
    with Bar(200, 0) as bar:
        for number in range(200):
            say(f"line {number} " + 100 * "x")
            print("by print")
            print("by print", file=sys.stderr)
            bar.advance("loss 1")
    open(sys.argv[1], "w").write("done")

sys.exit(run_process(main, trains=TRAINS, results=RESULTS))
"""
LOGS = RUNS.replace("TRAINS", "True").replace("RESULTS", "False")
RESULTS = RUNS.replace("TRAINS", "False").replace("RESULTS", "True").replace("200", "3000")  # more than a pipe holds


def shell(script, code, tmp_path):
    """Runs a line of bash. $T is a command that writes a file when done; the script puts its exit code in $code."""
    (tmp_path / "command.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "T": f"{sys.executable} command.py done"}
    line = f"{script}\nexit ${{code:-$?}}"
    return subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )


STREAMS = {
    "both to a reader that goes away": "$T 2>&1 | head -2; code=${PIPESTATUS[0]}",
    "standard output to a reader that goes away": "$T | head -2; code=${PIPESTATUS[0]}",
    "both to a full disk": "$T > /dev/full 2>&1",
    "both closed": "$T >&- 2>&-",
    "all closed": "$T <&- >&- 2>&-",
    "standard output closed": "$T >&-",
    "standard error closed": "$T > /dev/null 2>&-",
}


@pytest.mark.parametrize("streams", STREAMS)
def test_a_run_whose_log_cannot_be_written_finishes(streams, tmp_path):
    done = shell(STREAMS[streams], LOGS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "done"  # and no line of the log
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ("standard output to a reader that goes away", 141),
        ("both to a full disk", 2),
        ("standard output closed", 2),
        ("standard error closed", 0),
    ],
)
def test_a_command_whose_results_cannot_be_written_fails(streams, code, tmp_path):
    done = shell(STREAMS[streams], RESULTS, tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    if streams == "standard output closed":
        assert "error: standard output is closed" in done.stderr


def test_results_that_are_only_flushed_at_exit_count_too(tmp_path):
    """They fit in the buffer, so only the last flush fails."""
    code = "import sys\nfrom mindspore_palm.launch.command import run_process\n"
    code += "sys.exit(run_process(lambda: print('42')))\n"
    assert shell("$T > /dev/full", code, tmp_path).returncode == 2
    assert shell("$T | (exec <&-; sleep 1); code=${PIPESTATUS[0]}", code, tmp_path).returncode == 141
    done = shell("$T", code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "42\n")


@pytest.mark.parametrize("command", [["run/train.py", "--print-config"], ["run/plan.py", "--published"]])
def test_commands_that_print_results_fail_if_they_cannot_be_written(command):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {' '.join(command)} > /dev/full"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "No space left on device (standard output)" in done.stderr


def test_a_terminal_that_is_closed_does_not_end_a_run(tmp_path):
    """Writing to it fails with EIO; SIGHUP is ignored, as with nohup."""
    (tmp_path / "command.py").write_text(
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        + LOGS.replace("def main():\n", "def main():\n    time.sleep(2)\n")
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "command.py", "done"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    time.sleep(1)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").read_text() == "done"


def test_progress_without_a_terminal_is_a_line_every_30_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Bar(1000, 0) as bar:
        for _ in range(1000):
            now[0] += 0.25
            bar.advance("loss 2.5")
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == "step 1 of 1,000: loss 2.5"
    assert 7 <= len(lines) <= 10  # 250 seconds
    assert output.err == ""


def test_the_bar_is_drawn_on_a_terminal(tmp_path):
    (tmp_path / "command.py").write_text(LOGS)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "command.py", "done"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while text := os.read(ours, 65536):
            shown += text
    assert process.wait(timeout=60) == 0
    assert b"200/200" in shown and b"line 199" in shown


def test_a_reader_that_goes_away_does_not_end_a_process_that_has_its_own_streams():
    """Such as training that a user's script started."""
    script = "from mindspore_palm.console import say\nimport sys\ninput()\nsay('a')\nsay('b')\nsys.exit(7)"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(b"\n", timeout=60)
    assert process.returncode == 7, err
    assert b"Traceback" not in err


@pytest.mark.parametrize("read", ["sys.stdin.buffer.read()", "sys.stdin.read()"])
def test_a_closed_standard_input_is_at_its_end(read):
    """Python sets ``sys.stdin`` to None then."""
    script = f"import sys; from mindspore_palm import console; console.protect(); print(len({read}))"
    command = ["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)
