"""A server in a process of its own, and its clients: plain HTTP, as any program could send it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START = 60  # seconds that a server may need, on a busy machine


class Server:
    """A running server; ``port`` and ``process``."""

    def __init__(self, process, port):
        self.process, self.port = process, port

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, method, path, body=None, content_type="application/json"):
        """Status, headers and body of a request; a body that is no bytes is sent as JSON."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": content_type} if data is not None else {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def complete(self, **body):
        """The answer to a completion; checks that it is one."""
        status, _, content = self.ask("POST", "/v1/completions", body)
        assert status == 200, content
        return json.loads(content)

    def refused(self, body, path="/v1/completions"):
        """Status and error object of a request that is not answered."""
        status, headers, content = self.ask("POST", path, body)
        assert status >= 400 and headers["content-type"] == "application/json", content
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
        return status, error

    def health(self):
        return json.loads(self.ask("GET", "/health")[2])

    def wait_for(self, **state):
        """Waits until health has these values."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if state.items() <= (now := self.health()).items():
                return
            time.sleep(0.02)
        raise AssertionError(f"{state} did not come; health is {now}")

    @contextmanager
    def stream(self, **body):
        """An iterator over the events of a stream, whose connection is closed at the end."""
        connection = self.connect()
        data = json.dumps({**body, "stream": True}).encode()
        connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        try:
            assert answer.status == 200, answer.read()
            assert answer.getheader("content-type").startswith("text/event-stream")
            yield events(answer)
        finally:
            answer.close()
            connection.close()


def events(answer):
    for line in answer:
        if line.startswith(b"data: "):
            yield line[len(b"data: ") :].rstrip(b"\n").decode()
        else:
            assert line == b"\n", line


def joined(stream):
    """The texts of a stream by index, their reasons, and the chunk of usage if there is one."""
    texts, reasons, usage = {}, {}, None
    ended = False
    for data in stream:
        assert not ended
        if data == "[DONE]":
            ended = True
            continue
        chunk = json.loads(data)
        assert chunk["object"] == "text_completion"
        usage = chunk.get("usage", usage)
        for choice in chunk["choices"]:
            assert reasons.get(choice["index"]) is None, "text after its end"
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
    assert ended
    return texts, reasons, usage


@contextmanager
def serving(folder, *options):
    """A server for a model, which is ended with the block."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    line = [sys.executable, str(ROOT / "run" / "serve.py"), str(folder), "--port", "0", *options]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, encoding="utf-8"
    )
    try:
        yield Server(process, port_of(process))
    finally:
        process.kill()
        process.communicate()


def port_of(process):
    """The port of the line that a server prints when it is ready."""
    said = ""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        said += line
        if found := re.search(r"at http://127\.0\.0\.1:(\d+):", line):
            return int(found[1])
        if not line:
            break
    process.kill()
    raise AssertionError(f"the server did not start:\n{said}")


def stopped(server, *numbers):
    """Sends signals, more than a second apart; returns exit code and output."""
    for i, number in enumerate(numbers):
        if i:
            time.sleep(1.2)
        server.process.send_signal(number)
    said, _ = server.process.communicate(timeout=30)
    return server.process.returncode, said


INTERRUPT, TERMINATE = signal.SIGINT, signal.SIGTERM
