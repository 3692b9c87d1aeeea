"""Requests and errors in the format of OpenAI's API (https://platform.openai.com/docs/api-reference/completions).

Closed by default: a parameter that the server does not know, or does not support, is refused, unless its value changes
nothing.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

MAX_STOPS = 4
MAX_LOGPROBS = 5
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "texts are not ranked; use n, which returns all of them"),
    "frequency_penalty": ((0,), "leave it out"),
    "presence_penalty": ((0,), "leave it out"),
    "logit_bias": (({},), "leave it out"),
    "suffix": (("",), "the model continues a text and cannot fill a gap in it; leave it out"),
}
"""Parameters of OpenAI's that are not supported: the values that change nothing, and what to do."""
CHAT_ONLY = ("messages", "tools", "tool_choice", "functions", "response_format")
"""Parameters that belong to chat completions."""


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what is wrong, where, and what to do.
        parameter: that it is about.
        code: a name for programs.
    """

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.parameter, self.code = status, message, parameter, code

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.parameter, "code": self.code}}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    """Whether a last chunk without choices has the counts of tokens."""


class CompletionRequest(BaseModel):
    """Body of POST /v1/completions. Defaults are OpenAI's; null is the default, too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    """Name of the served model. It may be left out."""
    prompt: list[str | tuple[int, ...]]
    """Texts, each of which begins a document, or token ids."""
    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1)] = 1
    """Texts for each prompt."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Decides all draws, together with the prompt; None draws a seed."""
    stop: list[str] = []
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Likeliest tokens to list for each position, beside the chosen one."""
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Has no effect."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _read_prompt(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not value:
            raise ValueError("must be a text, a list of texts, token ids, or a list of token ids")
        if _are_tokens(value):
            return [tuple(value)]
        if all(isinstance(one, str) for one in value):
            return value
        if all(isinstance(one, list) and _are_tokens(one) for one in value):
            return [tuple(one) for one in value]
        raise ValueError("must be a text, a list of texts, token ids, or a list of token ids")

    @field_validator("stop", mode="before")
    @classmethod
    def _read_stop(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"must be a text that is not empty, or up to {MAX_STOPS} of them")
        if len(texts) > MAX_STOPS:
            raise ValueError(f"has {len(texts)} texts; at most {MAX_STOPS} are possible")
        return texts

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream = true; leave it out")
        if self.echo and self.logprobs is not None:
            raise ValueError(
                "echo and logprobs together would need log-probabilities of the prompt's tokens, which the server does "
                "not compute; leave one of them out"
            )
        return self


def read_request(body: bytes) -> CompletionRequest:
    """The request in a body of JSON.

    Raises:
        RequestError: it is not JSON, has a parameter that is not supported, or a value out of its range.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RequestError(400, 'the body must be an object, such as {"prompt": "def main("}')
    values = {name: value for name, value in values.items() if value is not None}
    for name, (neutral, fix) in UNSUPPORTED.items():
        if name in values and (given := values.pop(name)) not in neutral:
            raise RequestError(400, f"{name} = {_shown(given)}: this server does not support it; {fix}", name)
    for name in CHAT_ONLY:
        if name in values:
            raise RequestError(400, f"{name} is for chat, and this server continues texts; send a prompt", name)
    try:
        return CompletionRequest.model_validate(values)
    except ValidationError as error:
        raise _explained(error) from None


def _explained(error: ValidationError) -> RequestError:
    first = error.errors()[0]
    parameter = ".".join(map(str, first["loc"])) or None
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = ", ".join(CompletionRequest.model_fields)
        return RequestError(400, f"{parameter} is no parameter of this server; there are {known}", parameter)
    if first["type"] == "missing":
        return RequestError(400, f"{parameter} is missing; send the beginning of a text", parameter)
    if parameter is None:
        return RequestError(400, reason)
    return RequestError(400, f"{parameter} = {_shown(first['input'])}: {reason[0].lower()}{reason[1:]}", parameter)


def _are_tokens(values: list[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _shown(value: Any) -> str:
    """A value for a message, on one line and not long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
