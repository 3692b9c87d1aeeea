"""Start and end of the server: what is refused in a sentence, and what a signal does to running requests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from serve.client import INTERRUPT, ROOT, TERMINATE, joined, serving, stopped

ENDLESS = ["--max-tokens", "100000"]


def command(*words, **environment):
    line = [sys.executable, str(ROOT / "run" / "serve.py"), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def refusal(*words, **environment):
    done = command(*words, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        ([".", "--port", "65536"], "--port 65536: must be 0 (any free one) to 65535"),
        ([".", "--places", "0"], "--places 0: must be 1 to 1024"),
        ([".", "--queue", "-1"], "--queue -1: must be 0"),
        ([".", "--max-tokens", "0"], "--max-tokens 0: must be 1 or more"),
        ([".", "--grace", "nan"], "--grace nan: must be 0 to 3600 seconds"),
        ([".", "--host", "no such host"], "--host no such host: there is no such address"),
        ([".", "--port", "8000", "--port", "8001"], "--port is given twice"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(words, message):
    assert message in refusal(*words)


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert "name the folder of a finished run" in refusal(tmp_path, "--port", 0)


def test_a_context_beyond_the_training_is_refused(model_folder):
    assert "--context 500: the model was trained on 160 tokens" in refusal(model_folder, "--port", 0, "--context", 500)


def test_a_port_in_use_is_refused_before_the_model_is_loaded(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"--port {port}: cannot listen at 127.0.0.1: Address already in use" in refusal(tmp_path, "--port", port)


def test_without_its_libraries_one_sentence_says_how_to_get_them(tmp_path):
    """Packages of those names without a spec, as if they were not installed."""
    hide = "import sys\nsys.modules.update(starlette=None, uvicorn=None)\n"
    hide += "import importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda name, package=None: None if name in ('starlette', 'uvicorn') else f(name, package)\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    message = refusal(tmp_path, PYTHONPATH=path)
    assert "palm serve needs starlette and uvicorn, which are not installed; pip install" in message
    assert "'mindspore_palm[serve]'" in message


@pytest.mark.parametrize(
    ("address", "url", "exposed"),
    [
        (("127.0.0.1", 80), "http://127.0.0.1:80", False),
        (("0.0.0.0", 81), "http://0.0.0.0:81", True),
        (("::1", 82, 0, 0), "http://[::1]:82", False),
        (("fe80::1%eth0", 83, 0, 2), "http://[fe80::1%eth0]:83", True),
    ],
)
def test_addresses_are_written_for_a_browser_and_known_to_be_exposed(address, url, exposed):
    from mindspore_palm.serve.server import is_exposed, url_of

    listener = SimpleNamespace(getsockname=lambda: address)
    assert (url_of(listener), is_exposed(listener)) == (url, exposed)


@pytest.mark.parametrize(("folder", "name"), [("runs/a", "a"), ("runs/a/final", "a"), ("runs/a/step_1", "step_1")])
def test_a_model_has_the_name_of_its_run(folder, name):
    from mindspore_palm.serve.server import name_of

    assert name_of(Path(folder)) == name


@pytest.mark.parametrize("number", [INTERRUPT, TERMINATE])
def test_a_signal_ends_an_idle_server(model_folder, number):
    with serving(model_folder) as server:
        code, said = stopped(server, number)
        assert code == 130 and said.endswith("\nstopped\n") and "Traceback" not in said


@pytest.mark.parametrize("number", [INTERRUPT, TERMINATE])
def test_a_signal_before_the_server_is_ready_ends_it(model_folder, number):
    """While its graphs are compiled."""
    line = [sys.executable, str(ROOT / "run" / "serve.py"), str(model_folder), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, said, out, err) == (130, "compiling\n", "", "\nstopped\n")


def test_running_requests_finish_and_waiting_ones_are_refused(model_folder):
    with serving(model_folder, "--places", "1", *ENDLESS, "--grace", "600") as server:
        results = {}

        def waiting():
            results["waiting"] = server.refused({"prompt": "x"})

        with server.stream(prompt="x", max_tokens=800, temperature=0) as stream:
            first = next(stream)
            thread = threading.Thread(target=waiting)
            thread.start()
            server.wait_for(running=1, waiting=1)
            server.process.send_signal(TERMINATE)
            texts, reasons, _ = joined([first, *stream])
        thread.join(30)
        assert reasons == {0: "length"} and texts[0]
        assert results["waiting"][0] == 503 and "the server is stopping" in results["waiting"][1]["message"]
        said, _ = server.process.communicate(timeout=30)
        assert server.process.returncode == 130 and "Traceback" not in said
        assert "running requests have 600 s to finish; Ctrl-C again cancels them" in said


@pytest.mark.parametrize("grace", ["600", "0.2"])
def test_a_second_signal_or_the_end_of_the_grace_cancels(model_folder, grace):
    with serving(model_folder, *ENDLESS, "--grace", grace) as server:
        chunks = []

        def read():
            with server.stream(prompt="x", max_tokens=100_000, temperature=0) as stream:
                chunks.extend(stream)

        thread = threading.Thread(target=read)
        thread.start()
        server.wait_for(running=1)
        start = time.monotonic()
        code, said = stopped(server, *([INTERRUPT] if grace == "0.2" else [INTERRUPT, INTERRUPT]))
        assert time.monotonic() - start < 100
        thread.join(30)
        assert code == 130 and said.endswith("\nstopped\n") and "Traceback" not in said
        assert "the server is stopping" in json.loads(chunks[-1])["error"]["message"]
