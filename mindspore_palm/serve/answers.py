"""Answers in the format of OpenAI's completions, from what the scheduler tells."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.serve.protocol import CompletionRequest
from mindspore_palm.serve.scheduler import Progress, Token

EOD = "[eod]"  # how the token that ends a document is written in log-probabilities
REASONS = {"eod": "stop", "stop": "stop", "length": "length", "": None}
DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Answer:
    """The answer to one request.

    Args:
        request: the request.
        prompts: the text of each prompt, for echo.
        prompt_tokens: tokens of all prompts.
        tokenizer: the model's tokenizer.
        about: id, time and model.
    """

    def __init__(
        self,
        request: CompletionRequest,
        prompts: Sequence[str],
        prompt_tokens: int,
        tokenizer: Tokenizer,
        about: dict[str, Any],
    ) -> None:
        self._about, self._prompt_tokens, self._completion_tokens = about, prompt_tokens, 0
        self._choices = [
            _Choice(request, prompt if request.echo else "", tokenizer) for prompt in prompts for _ in range(request.n)
        ]

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.reason for choice in self._choices)

    def add(self, progress: Progress) -> dict[str, Any]:
        """Takes new text; returns the chunk of a stream that has it."""
        self._completion_tokens += len(progress.tokens)
        choice = self._choices[progress.index].add(progress)
        return {**self._about, "choices": [{"index": progress.index, **choice}]}

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, of the texts, and of both."""
        counts = self._prompt_tokens, self._completion_tokens
        return dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), (*counts, sum(counts)), strict=True))

    def last_chunk(self) -> dict[str, Any]:
        """The chunk of a stream that has the counts of tokens."""
        return {**self._about, "choices": [], "usage": self.usage()}

    def body(self) -> dict[str, Any]:
        """The full answer."""
        choices = [{"index": index, **choice.full()} for index, choice in enumerate(self._choices)]
        return {**self._about, "choices": choices, "usage": self.usage()}


class _Choice:
    """One text of an answer."""

    def __init__(self, request: CompletionRequest, echoed: str, tokenizer: Tokenizer) -> None:
        self.reason: str | None = None
        self._chunks: list[dict[str, Any]] = []
        self._echoed = echoed
        self._log_probs = None if request.logprobs is None else _LogProbs(request.logprobs, len(echoed), tokenizer)

    def add(self, progress: Progress) -> dict[str, Any]:
        text = progress.text if self._chunks else self._echoed + progress.text
        self.reason = REASONS[progress.finished]
        log_probs = self._log_probs and self._log_probs.of(progress.tokens)
        chunk = {"text": text, "logprobs": log_probs, "finish_reason": self.reason}
        self._chunks.append(chunk)
        return chunk

    def full(self) -> dict[str, Any]:
        log_probs: dict[str, Any] | None = None
        if self._log_probs is not None:
            of_chunks = [chunk["logprobs"] for chunk in self._chunks]
            log_probs = {name: [x for one in of_chunks for x in one[name] or ()] for name in of_chunks[0]}
            log_probs["top_logprobs"] = log_probs["top_logprobs"] or None
        text = "".join(chunk["text"] for chunk in self._chunks)
        return {"text": text, "logprobs": log_probs, "finish_reason": self.reason}


@dataclass
class _LogProbs:
    """Log-probabilities of tokens, and where each token begins in the text.

    Args:
        count: likeliest tokens to list.
        offset: characters before the first token.
        tokenizer: the model's tokenizer.
    """

    count: int
    offset: int
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets = [self._offset_of(self.tokenizer.decode_bytes([token.number])[token.repeated :]) for token in tokens]
        return {
            "tokens": [self._name(token.number) for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens] if self.count else None,
            "text_offset": offsets,
        }

    def _offset_of(self, data: bytes) -> int:
        """Where the bytes of the next token begin: in the middle of a character, where that character does."""
        waiting = self._characters.getstate()[0]
        if data and waiting and data[0] & 0xC0 != 0x80:  # the other bytes of that character never come
            self.offset += len(waiting.decode("utf-8", "replace"))
            self._characters.reset()
        before, self.offset = self.offset, self.offset + len(self._characters.decode(data))
        return before

    def _likeliest(self, token: Token) -> dict[str, float]:
        """By name; of two tokens of one name the likelier, and the chosen one in any case."""
        named: dict[str, float] = {}
        for number, log_prob in (*token.alternatives, (token.number, token.log_prob)):
            named.setdefault(self._name(number), log_prob)
        return named

    def _name(self, token: int) -> str:
        """A token's text. Bytes that are no text by themselves are written in hexadecimal, as OpenAI does."""
        if token == self.tokenizer.eod:
            return EOD
        data = self.tokenizer.decode_bytes([token])
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
