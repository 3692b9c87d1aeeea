"""The server as its clients see it: what it answers is what the model generates alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from mindspore import Tensor
from serve.client import joined, serving

from mindspore_palm import Sampling

PROMPT = "import os1"


@pytest.fixture(scope="module")
def server(model_folder):
    with serving(model_folder, "--places", "4", "--queue", "6", "--max-tokens", "400") as running:
        yield running


def test_a_greedy_answer_is_the_text_of_palm_generate(server, generator):
    """Also beyond the context, where the window slides."""
    (expected,) = generator([PROMPT], Sampling(max_tokens=300))
    answer = server.complete(prompt=PROMPT, max_tokens=300, temperature=0)
    assert answer["object"] == "text_completion" and answer["model"] == "small" and answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    reason = {"eod": "stop", "length": "length"}[expected.finished]
    assert choice == {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": reason}
    read = 1 + len(generator.tokenizer.encode(PROMPT))  # [eod] before it
    written = len(expected.token_ids)
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    assert answer["usage"] == usage


def test_a_seed_gives_the_draws_of_palm_generate(server, generator):
    sampling = Sampling(max_tokens=30, temperature=1.2, top_p=0.9, seed=7)
    expected = [one.text for one in generator([PROMPT, PROMPT, "def f"], sampling)]
    asked = dict(max_tokens=30, temperature=1.2, top_p=0.9, seed=7)
    answer = server.complete(prompt=[PROMPT, PROMPT, "def f"], **asked)
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    twice = server.complete(prompt=PROMPT, n=2, **asked)  # n texts are drawn like n equal prompts
    assert [choice["text"] for choice in twice["choices"]] == expected[:2] and expected[0] != expected[1]


def test_without_a_seed_every_request_draws_anew(server):
    texts = {server.complete(prompt=PROMPT, max_tokens=20)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 3  # of 320^20: chance plays no part


def test_the_defaults_are_those_of_openai(server, generator):
    """16 tokens at temperature 1, from all tokens; null is the default, too."""
    (expected,) = generator([PROMPT], Sampling(max_tokens=16, temperature=1.0, seed=3))
    neutral = {"best_of": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "suffix": ""}
    nothing = {"max_tokens": None, "temperature": None, "top_p": None, "stop": None, "logprobs": None, "user": "me"}
    for more in ({}, neutral, nothing, {"model": "small"}):
        assert server.complete(prompt=PROMPT, seed=3, **more)["choices"][0]["text"] == expected.text


def test_a_stream_is_the_same_text_in_pieces(server, generator):
    sampling = Sampling(max_tokens=40, temperature=1.0, seed=5)
    expected = generator([PROMPT, "def f"], sampling)
    asked = dict(prompt=[PROMPT, "def f"], max_tokens=40, seed=5)
    with server.stream(**asked) as stream:
        chunks = list(stream)
    assert len(chunks) > 20 and chunks[-1] == "[DONE]"
    texts, reasons, usage = joined(chunks)
    assert texts == {i: one.text for i, one in enumerate(expected)} and usage is None
    assert set(reasons.values()) <= {"stop", "length"}
    with server.stream(**asked, stream_options={"include_usage": True}) as stream:
        texts, _, usage = joined(stream)
    assert texts == {i: one.text for i, one in enumerate(expected)}
    assert usage == server.complete(**asked)["usage"]
    assert usage["completion_tokens"] == sum(len(one.token_ids) for one in expected)


def test_token_ids_are_read_as_they_are(server, generator):
    tokens = generator.tokenizer.encode(PROMPT)
    expected = [one.text for one in generator([tokens, tokens[:1]], Sampling(max_tokens=9))]
    asked = dict(max_tokens=9, temperature=0)
    assert server.complete(prompt=tokens, **asked)["choices"][0]["text"] == expected[0]
    both = server.complete(prompt=[tokens, tokens[:1]], **asked)
    assert [choice["text"] for choice in both["choices"]] == expected
    assert both["usage"]["prompt_tokens"] == len(tokens) + 1
    assert server.complete(prompt=tokens, echo=True, **asked)["choices"][0]["text"] == PROMPT + expected[0]


def test_a_stop_text_ends_an_answer(server, generator):
    sampling = Sampling(max_tokens=40, temperature=1.0, seed=5)
    (free,) = generator([PROMPT], sampling)
    middle = len(free.text) // 2
    stops = [free.text[middle : middle + 2], "never in it"]
    (expected,) = generator([PROMPT], Sampling(max_tokens=40, temperature=1.0, seed=5, stop=tuple(stops)))
    (choice,) = server.complete(prompt=PROMPT, max_tokens=40, seed=5, stop=stops)["choices"]
    assert choice["text"] == expected.text == free.text[: free.text.index(stops[0])]
    assert choice["finish_reason"] == "stop"
    with server.stream(prompt=PROMPT, max_tokens=40, seed=5, stop=stops[0]) as stream:
        assert joined(stream)[0] == {0: expected.text}


@pytest.mark.parametrize("prompt", [PROMPT, "def f \n "])
def test_echo_puts_the_prompt_before_the_text(server, prompt):
    asked = dict(prompt=prompt, max_tokens=12, seed=1)
    plain = server.complete(**asked)["choices"][0]["text"]
    assert server.complete(**asked, echo=True)["choices"][0]["text"] == prompt + plain
    with server.stream(**asked, echo=True) as stream:
        assert joined(stream)[0] == {0: prompt + plain}


def test_log_probabilities_are_those_of_a_full_forward_pass(server, generator):
    tokenizer, asked = generator.tokenizer, dict(prompt=PROMPT, max_tokens=12, temperature=1.0, seed=4)
    (choice,) = server.complete(**asked, logprobs=3)["choices"]
    (expected,) = generator([PROMPT], Sampling(max_tokens=12, temperature=1.0, seed=4))
    ids = [tokenizer.eod, *tokenizer.encode(PROMPT), *expected.token_ids]
    logits = generator.palm(Tensor(np.array([ids], np.int32))).asnumpy()[0].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    listed, first = choice["logprobs"], len(ids) - len(expected.token_ids) - 1
    assert len(listed["tokens"]) == len(expected.token_ids) == len(listed["text_offset"])
    for i, token in enumerate(expected.token_ids):
        row = log_probs[first + i]
        assert listed["token_logprobs"][i] == pytest.approx(row[token], abs=1e-5)
        best = sorted(row, reverse=True)[:3]
        top = listed["top_logprobs"][i]
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(best, abs=1e-5)
        assert top[listed["tokens"][i]] >= listed["token_logprobs"][i] - 1e-9 and 3 <= len(top) <= 4
    for i, name in enumerate(listed["tokens"]):
        if name.startswith("bytes:"):
            assert bytes.fromhex(name[6:].replace("\\x", "")) == tokenizer.decode_bytes([expected.token_ids[i]])
        elif name != "[eod]":
            offset = listed["text_offset"][i]
            assert name == tokenizer.decode([expected.token_ids[i]])
            assert choice["text"][offset : offset + len(name)] == name
    (none,) = server.complete(**asked, logprobs=0)["choices"]
    assert none["logprobs"]["token_logprobs"] == listed["token_logprobs"] and none["logprobs"]["top_logprobs"] is None
    with server.stream(**asked, logprobs=3) as stream:
        chunks = [json.loads(data) for data in stream if data != "[DONE]"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert {name: [x for part in parts for x in part[name]] for name in parts[0]} == listed
    assert all(math.isfinite(x) and x < 0 for x in listed["token_logprobs"])


def test_models_and_health(server):
    models = json.loads(server.ask("GET", "/v1/models")[2])
    (model,) = models["data"]
    assert models["object"] == "list" and (model["id"], model["object"]) == ("small", "model")
    assert json.loads(server.ask("GET", "/v1/models/small")[2]) == model
    status, _, content = server.ask("GET", "/v1/models/large")
    assert status == 404 and "this server has 'small'" in json.loads(content)["error"]["message"]
    health = {"status": "ok", "model": "small", "context": 160, "max_tokens": 400, "places": 4}
    server.wait_for(**health, running=0, waiting=0)


def test_the_page_loads_nothing_from_elsewhere(server):
    status, headers, content = server.ask("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not [word for word in (b"http://", b"https://", b"//cdn", b"@import", b"src=") if word in content]


LIMITS = {
    "many tokens": ({"max_tokens": 401}, "max_tokens = 401: this server allows at most 400"),
    "long prompt": ({"prompt": "x1" * 100}, "tokens, and the context holds 160 tokens: shorten it"),
    "very long prompt": ({"prompt": "x" * 100_000}, "the prompt has 100,000 characters"),
    "many texts": ({"n": 11}, "asks for 11 texts, and this server holds 10 at a time"),
    "second prompt": ({"prompt": ["a", ""]}, "prompt 2 is empty"),
    "wrong token": ({"prompt": [320]}, "holds 320, and tokens go to 319"),
}


@pytest.mark.parametrize(("body", "message"), LIMITS.values(), ids=LIMITS)
def test_what_is_over_a_limit_is_refused(server, body, message):
    status, error = server.refused({"prompt": PROMPT, **body})
    assert status == 400 and error["type"] == "invalid_request_error" and message in error["message"]


def test_what_is_no_request_is_refused(server):
    assert server.refused(b"{")[1]["message"].startswith("the body is not JSON")
    status, error = server.refused({"prompt": "x", "model": "large"})
    assert (status, error["code"]) == (404, "model_not_found")
    status, error = server.refused({"messages": []}, "/v1/chat/completions")
    assert status == 404 and "no chat completions" in error["message"]
    status, error = server.refused({}, "/v1/embeddings")
    assert status == 404 and "there is no POST /v1/embeddings" in error["message"]
    assert server.ask("GET", "/v1/completions")[0] == 405
    status, _, content = server.ask("POST", "/v1/completions", b"{}", "text/plain")
    assert status == 415 and "application/json" in json.loads(content)["error"]["message"]
    assert server.refused(b"[" * (9 << 20))[0] == 413
    assert server.refused(b"[" * 100_000)[0] == 400


def test_a_full_queue_is_429_and_the_rest_is_answered(server):
    """Four places and six that wait; a request that would need an eleventh is refused, and nothing else is lost."""
    asked = dict(prompt=PROMPT, max_tokens=400, temperature=0, n=10)
    with server.stream(**asked) as stream:
        next(stream)
        status, error = server.refused({"prompt": PROMPT})
        assert status == 429 and error["type"] == "rate_limit_error" and "try again later" in error["message"]
    server.wait_for(running=0, waiting=0)  # the client went away
    assert server.complete(prompt=PROMPT)["choices"]
