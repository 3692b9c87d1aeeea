"""Many clients at once: no answer is lost, none is mixed up with another, and who goes away frees its place."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from serve.client import joined, serving

from mindspore_palm import Sampling

CLIENTS, GONE = 32, 8
ENDLESS = 100_000  # tokens that would keep a place for minutes


def questions(count):
    """Different prompts, from one token to beyond two chunks, and settings; drawn with a fixed seed."""
    draw = np.random.default_rng(11)
    for i in range(count):
        prompt = f"import os{i}" + "".join(f"\ndef f{x}(a, b):" for x in draw.integers(0, 400, draw.integers(0, 12)))
        yield {
            "prompt": prompt[: int(draw.integers(9, 200))],
            "max_tokens": int(draw.integers(1, 200)),
            "temperature": [0.0, 0.7, 1.3][i % 3],
            "top_p": [1.0, 0.9][i % 2],
            "seed": int(draw.integers(0, 1000)),
        }


def ask(server, question, stream):
    if not stream:
        return server.complete(**question)["choices"][0]["text"]
    with server.stream(**question) as chunks:
        return joined(chunks)[0][0]


def go_away(server, seen):
    """Reads a few events of a text that would not end, and closes the connection."""
    with server.stream(prompt="x", max_tokens=ENDLESS, temperature=0) as chunks:
        for _ in range(3):
            next(chunks)
        seen.append(True)


@pytest.fixture(scope="module")
def server(model_folder):
    with serving(
        model_folder, "--places", "8", "--queue", "40", "--max-tokens", str(ENDLESS), "--name", "busy"
    ) as running:
        yield running


def test_32_clients_get_what_each_would_get_alone(server, generator):
    """Half of them stream. Eight more take all places first, for texts without an end, and go away."""
    asked = list(questions(CLIENTS))
    expected = [
        generator([one["prompt"]], Sampling(**{k: v for k, v in one.items() if k != "prompt"})) for one in asked
    ]
    answers, seen = {}, []

    def answer(i):
        answers[i] = ask(server, asked[i], stream=i % 2 == 0)

    leaving = [threading.Thread(target=go_away, args=(server, seen)) for _ in range(GONE)]
    staying = [threading.Thread(target=answer, args=(i,)) for i in range(CLIENTS)]
    for thread in leaving + staying:
        thread.start()
    for thread in leaving + staying:
        thread.join(120)
    assert len(seen) == GONE
    assert answers == {i: one[0].text for i, one in enumerate(expected)}
    assert len(set(answers.values())) > CLIENTS // 2  # they were different questions
    server.wait_for(running=0, waiting=0)


def test_a_request_that_waits_and_is_given_up_is_never_decoded(server):
    """Eight texts without an end hold all places; whoever waits for one and leaves is forgotten, streaming or not."""
    with server.stream(prompt="x", max_tokens=ENDLESS, temperature=0, n=8) as busy:
        next(busy)
        server.wait_for(running=8, waiting=0)
        connection = server.connect()
        body = b'{"prompt": "x", "max_tokens": 5}'
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        with server.stream(prompt="x"):
            server.wait_for(running=8, waiting=2)
        server.wait_for(running=8, waiting=1)
        connection.close()
        server.wait_for(running=8, waiting=0)
    server.wait_for(running=0, waiting=0)
    assert server.complete(prompt="x", max_tokens=3)["choices"]


def test_health_is_answered_while_texts_are_decoded(server):
    """The event loop never waits for the network of the model."""
    with server.stream(prompt="x", max_tokens=ENDLESS, temperature=0, n=8) as busy:
        next(busy)
        times = []
        for _ in range(50):
            start = time.monotonic()
            assert server.health().items() >= {"status": "ok", "model": "busy"}.items()  # --name
            times.append(time.monotonic() - start)
        assert np.median(times) < 0.5
    server.wait_for(running=0, waiting=0)
