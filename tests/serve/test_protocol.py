"""Requests: what is read, and what is refused in one sentence that names the parameter."""

from __future__ import annotations

import json

import pytest

from mindspore_palm.serve.protocol import CompletionRequest, RequestError, read_request


def read(**body):
    return read_request(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("x", ["x"]),
        (["x"], ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_prompts_are_texts_or_token_ids(prompt, expected):
    assert read(prompt=prompt).prompt == expected


def test_defaults_are_those_of_openais_reference():
    """https://platform.openai.com/docs/api-reference/completions/create"""
    asked = read(prompt="x")
    values = dict(max_tokens=16, temperature=1.0, top_p=1.0, n=1, seed=None, stop=[], logprobs=None, echo=False)
    assert asked == CompletionRequest(prompt=["x"], **values, stream=False)
    assert read(prompt="x", **dict.fromkeys(values)) == asked


def test_values_that_change_nothing_are_accepted():
    neutral = dict(best_of=1, frequency_penalty=0.0, presence_penalty=0, logit_bias={}, suffix="", tools=None)
    assert read(prompt="x", **neutral) == read(prompt="x")


REFUSED = [
    ({}, "prompt", "prompt is missing"),
    ({"prompt": []}, "prompt", "prompt = []: must be a text, a list of texts"),
    ({"prompt": [[], "x"]}, "prompt", "must be a text, a list of texts"),
    ({"prompt": [True]}, "prompt", "must be a text, a list of texts"),
    ({"prompt": {"a": 1}}, "prompt", "must be a text, a list of texts"),
    ({"prompt": 7}, "prompt", "prompt = 7: must be a text"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens", "max_tokens = 0: input should be greater than or equal to 1"),
    ({"prompt": "x", "max_tokens": "5"}, "max_tokens", "max_tokens = '5': input should be a valid integer"),
    ({"prompt": "x", "max_tokens": 2.5}, "max_tokens", "max_tokens = 2.5"),
    ({"prompt": "x", "temperature": 2.1}, "temperature", "temperature = 2.1: input should be less than or equal to 2"),
    ({"prompt": "x", "temperature": -1}, "temperature", "temperature = -1"),
    ({"prompt": "x", "top_p": 0}, "top_p", "top_p = 0: input should be greater than 0"),
    ({"prompt": "x", "n": 0}, "n", "n = 0"),
    ({"prompt": "x", "seed": -1}, "seed", "seed = -1"),
    ({"prompt": "x", "seed": 2**63}, "seed", f"seed = {2**63}"),
    ({"prompt": "x", "logprobs": 6}, "logprobs", "logprobs = 6: input should be less than or equal to 5"),
    ({"prompt": "x", "logprobs": True}, "logprobs", "logprobs = True"),
    ({"prompt": "x", "stop": ""}, "stop", "stop = '': must be a text that is not empty, or up to 4"),
    ({"prompt": "x", "stop": [1]}, "stop", "stop = [1]: must be a text"),
    ({"prompt": "x", "stop": list("abcde")}, "stop", "has 5 texts; at most 4 are possible"),
    ({"prompt": "x", "echo": 1}, "echo", "echo = 1"),
    ({"prompt": "x", "stream": "yes"}, "stream", "stream = 'yes'"),
    ({"prompt": "x", "echo": True, "logprobs": 0}, None, "echo and logprobs together"),
    ({"prompt": "x", "stream_options": {}}, None, "stream_options is only for stream = true"),
    ({"prompt": "x", "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "stream_options.x is no param"),
    ({"prompt": "x", "best_of": 2}, "best_of", "best_of = 2: this server does not support it; texts are not ranked"),
    ({"prompt": "x", "frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty = 0.5: this server does not"),
    ({"prompt": "x", "presence_penalty": -1}, "presence_penalty", "presence_penalty = -1: this server does not"),
    ({"prompt": "x", "logit_bias": {"5": 1}}, "logit_bias", "logit_bias = {'5': 1}: this server does not"),
    ({"prompt": "x", "suffix": "y"}, "suffix", "suffix = 'y': this server does not support it; the model continues"),
    ({"prompt": "x", "tools": []}, "tools", "tools is for chat"),
    ({"messages": [{"role": "user", "content": "x"}]}, "messages", "messages is for chat"),
    ({"prompt": "x", "top_k": 5}, "top_k", "top_k is no parameter of this server; there are model, prompt,"),
]


@pytest.mark.parametrize(("body", "parameter", "message"), REFUSED, ids=[str(body)[:60] for body, _, _ in REFUSED])
def test_what_is_not_supported_is_refused_by_name(body, parameter, message):
    with pytest.raises(RequestError) as caught:
        read(**body)
    error = caught.value.body()["error"]
    assert caught.value.status == 400 and error["type"] == "invalid_request_error"
    assert message in error["message"] and error["param"] == parameter and error["message"].isprintable()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nothing", b'{"prompt": NaN}', b"\xff", b"[" * 10_000, b'{"prompt": 1e999}']
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(RequestError) as caught:
        read_request(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"prompt"'])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(RequestError, match="the body must be an object, such as"):
        read_request(body)


def test_long_values_are_cut_in_messages():
    with pytest.raises(RequestError) as caught:
        read(prompt="x", stop=["a" * 500, 1])
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("status", "kind"), [(429, "rate_limit_error"), (503, "server_error"), (404, "invalid_request_error")]
)
def test_errors_have_openais_kinds(status, kind):
    assert RequestError(status, "why", "n", "code").body() == {
        "error": {"message": "why", "type": kind, "param": "n", "code": "code"}
    }
