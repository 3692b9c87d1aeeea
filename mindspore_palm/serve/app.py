"""The routes of the server. It runs in the thread of the event loop, and never waits for the network of the model."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mindspore_palm.data.prompt import Prompt
from mindspore_palm.errors import UserError
from mindspore_palm.generate.generator import Generator
from mindspore_palm.generate.sampling import Sampling
from mindspore_palm.generate.sequence import GrowingSequence
from mindspore_palm.serve.answers import DONE, Answer, event
from mindspore_palm.serve.engine import STOPPING, Engine
from mindspore_palm.serve.protocol import CompletionRequest, RequestError, read_request
from mindspore_palm.serve.scheduler import Failed, Job, Progress

MAX_BODY = 8 << 20  # bytes of a request
ROUTES = "GET /v1/models, POST /v1/completions, GET /health and the page at /"
PAGE_HEADERS = {  # the page loads nothing, and talks to this server alone
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Service:
    """A served model.

    Args:
        generator: the model; of its methods, only those that call no network are used here.
        engine: decodes.
        name: of the model, in the API.
        max_tokens: limit of a request's ``max_tokens``.
    """

    generator: Generator
    engine: Engine
    name: str
    max_tokens: int

    def __post_init__(self) -> None:
        self._created = int(time.time())
        self._page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/", self._show_page),
            Route("/health", self._health),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._show_model),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", _refuse_chat, methods=["GET", "POST"]),
        ]
        handlers: Any = {RequestError: _explain, HTTPException: _explain_http, Exception: _explain_failure}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _show_page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers=PAGE_HEADERS)

    async def _health(self, _: Request) -> Response:
        engine = self.engine
        running, outstanding = engine.running, engine.outstanding
        state = {
            "status": "stopping" if engine.stopping else "ok",
            "model": self.name,
            "context": self.generator.context,
            "max_tokens": self.max_tokens,
            "places": self.generator.batch,
            "running": running,
            "waiting": max(0, outstanding - running),
        }
        return JSONResponse(state, status_code=503 if engine.stopping else 200)

    def _describe(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self._created, "owned_by": "mindspore_palm"}

    async def _list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def _show_model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._describe())

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self.name):
            message = f"there is no model {name!r}; this server has {self.name!r}"
            raise RequestError(404, message, "model", "model_not_found")

    async def _complete(self, request: Request) -> Response:
        asked = read_request(await _body_of(request))
        self._check_name(asked.model)
        self._check_limits(asked)
        prompts = self._read_prompts(asked)
        events: asyncio.Queue[Progress | Failed] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(one: Progress | Failed) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(events.put_nowait, one)

        job = Job(self._begin(asked, prompts), deliver)
        if self.engine.stopping:
            raise RequestError(STOPPING.status, STOPPING.message)
        if not self.engine.submit(job):
            raise RequestError(
                429,
                f"{self.engine.outstanding} texts are being generated or wait, and {len(job.sequences)} more do not "
                f"fit: {self.engine.capacity} are possible; try again later",
                code="queue_full",
            )
        answer = self._answer(asked, prompts)
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            chunks = self._stream(request, job, events, answer, usage)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        try:
            async with _watched(request, events):
                while not answer.finished:
                    answer.add(_progress(await events.get()))
        finally:
            self.engine.cancel(job)
        return JSONResponse(answer.body())

    async def _stream(
        self, request: Request, job: Job, events: asyncio.Queue[Progress | Failed], answer: Answer, usage: bool
    ) -> AsyncIterator[bytes]:
        try:
            async with _watched(request, events):
                while not answer.finished:
                    yield event(answer.add(_progress(await events.get())))
            if usage:
                yield event(answer.last_chunk())
            yield DONE
        except RequestError as error:
            yield event(error.body())
        finally:
            self.engine.cancel(job)

    def _check_limits(self, asked: CompletionRequest) -> None:
        if asked.max_tokens > self.max_tokens:
            raise RequestError(
                400, f"max_tokens = {asked.max_tokens:,}: this server allows at most {self.max_tokens:,}", "max_tokens"
            )
        if (count := len(asked.prompt) * asked.n) > self.engine.capacity:
            raise RequestError(
                400,
                f"the request asks for {count:,} texts, and this server holds {self.engine.capacity:,} at a time; send "
                "fewer prompts, or a smaller n",
                "n" if asked.n > 1 else "prompt",
            )

    def _read_prompts(self, asked: CompletionRequest) -> list[Prompt]:
        many = len(asked.prompt) > 1
        try:
            return [
                self.generator.read_prompt(prompt, f"prompt {number}" if many else "the prompt")
                for number, prompt in enumerate(asked.prompt, 1)
            ]
        except UserError as error:
            raise RequestError(400, str(error), "prompt") from None

    def _begin(self, asked: CompletionRequest, prompts: list[Prompt]) -> list[GrowingSequence]:
        """The sequences, prompt by prompt. Equal prompts get different draws, as in ``Generator``."""
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        try:
            sampling = Sampling(
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                top_p=asked.top_p,
                stop=tuple(asked.stop),
                seed=seed,
            )
        except UserError as error:
            raise RequestError(400, str(error)) from None
        sequences, seen = [], Counter[Prompt]()
        for number, prompt in enumerate(prompts, 1):
            name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            for _ in range(asked.n):
                sequences.append(self.generator.begin(prompt, sampling, seen[prompt], name, asked.logprobs or 0))
                seen[prompt] += 1
        return sequences

    def _answer(self, asked: CompletionRequest, prompts: list[Prompt]) -> Answer:
        tokenizer = self.generator.tokenizer
        texts = [text if isinstance(text, str) else tokenizer.decode(text) for text in asked.prompt]
        count = sum(len(prompt.context) + len(tokenizer.encode(prompt.white_space)) for prompt in prompts)
        about = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        return Answer(asked, texts, count, tokenizer, about)


async def _body_of(request: Request) -> bytes:
    """The body of a request of JSON.

    A web page elsewhere may make a browser send a request here, but not of this type without asking first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, f"the content type is {kind or 'missing'}; send JSON, with application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RequestError(413, f"the body has more than {MAX_BODY >> 20} MB; send fewer or shorter prompts")
    return bytes(body)


@contextlib.asynccontextmanager
async def _watched(request: Request, events: asyncio.Queue[Progress | Failed]) -> AsyncIterator[None]:
    """Tells ``events`` when the client goes away."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        events.put_nowait(Failed(499, "the client went away"))

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def _progress(one: Progress | Failed) -> Progress:
    if isinstance(one, Failed):
        raise RequestError(one.status, one.message)
    return one


async def _refuse_chat(_: Request) -> Response:
    raise RequestError(
        404,
        "this server has no chat completions: its models continue texts, and were trained on no format of a chat; "
        "POST /v1/completions with a prompt",
    )


async def _explain(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - for the type alone
    return JSONResponse(error.body(), status_code=error.status)


async def _explain_http(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    message = f"there is no {request.method} {request.url.path}; this server has {ROUTES}"
    return JSONResponse(RequestError(status, message).body(), status_code=status)


async def _explain_failure(_: Request, __: Exception) -> Response:
    return JSONResponse(RequestError(500, "the server has failed; its own output says why").body(), status_code=500)
