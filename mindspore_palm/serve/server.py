"""``palm serve``: a trained model that answers at a socket, from its start to its end."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from mindspore_palm import console
from mindspore_palm.data.prompt import Prompt
from mindspore_palm.errors import Interrupted, UserError
from mindspore_palm.file_names import FINAL
from mindspore_palm.generate.command import open_generator
from mindspore_palm.generate.sampling import Sampling
from mindspore_palm.launch import stop
from mindspore_palm.launch.interrupts import end_process
from mindspore_palm.serve.app import Service
from mindspore_palm.serve.engine import Engine
from mindspore_palm.serve.scheduler import Scheduler

CLOSE = 3  # seconds that connections have to close at the end


@dataclass(frozen=True)
class ServeOptions:
    """The options of the command."""

    model: Path
    """A run's folder, or a folder in it that holds a model."""
    host: str
    port: int
    """0: any free one."""
    places: int
    """Sequences that are decoded together."""
    queue: int
    """Sequences that may wait for a place."""
    max_tokens: int
    context: int
    """Maximum number of tokens that the model sees; 0: as many as it was trained on."""
    grace: float
    """Seconds that running requests have to finish when the server is stopped."""
    name: str
    """Of the model, in the API; empty: the folder's."""
    device: str


def run(options: ServeOptions, listener: socket.socket) -> None:
    """Serves a model until a signal ends it. The model decodes in this thread, and the server answers in another.

    Args:
        options: the options.
        listener: bound to the address.

    Raises:
        UserError: the model does not fit the options.
        Interrupted: a signal.
    """
    with (
        _Signals(options.grace) as signals,
        open_generator(options.model, options.device, options.context, options.places) as (generator, _),
    ):
        console.say("compiling")
        warm_up = [Prompt((generator.tokenizer.eod,))]
        generator(warm_up, Sampling(max_tokens=2))  # the first request does not wait for a compiler
        engine = signals.engine = Engine(Scheduler(generator.places()), options.places + options.queue)
        name = options.name or name_of(options.model)
        with _served(Service(generator, engine, name, options.max_tokens), listener):
            console.say(
                f"serving {name} at {url_of(listener)}: {options.places} places, {options.queue} more may wait; "
                "Ctrl-C stops"
            )
            if is_exposed(listener):
                console.say("note: who reaches this address can use the model; there is no password")
            engine.run()
    raise Interrupted("\nstopped")


def name_of(folder: Path) -> str:
    """A model's name: of its folder, or of its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == FINAL else folder.name


def url_of(listener: socket.socket) -> str:
    """Address of the server for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_exposed(listener: socket.socket) -> bool:
    """Whether other machines may reach the server."""
    return not ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


@contextmanager
def _served(service: Service, listener: socket.socket) -> Iterator[None]:
    """Answers requests in another thread."""
    config = uvicorn.Config(
        service.app(),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,  # errors go to standard error, and requests are not logged
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE,
    )
    server = uvicorn.Server(config)

    def answer() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            service.engine.stop(0)

    thread = threading.Thread(target=answer, name="server", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    if not server.started:
        raise UserError(f"the server could not be started at {url_of(listener)}; see the messages above")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(2 * CLOSE)


class _Signals:
    """Lets a signal stop the engine, or end the process while there is none yet.

    A second signal, later than what may be the first one forwarded, stops the engine now. MindSpore turns Ctrl-C into
    SIGTERM (MS-68), which has the same effect.

    Args:
        grace: seconds that running requests have to finish.
    """

    def __init__(self, grace: float) -> None:
        self.engine: Engine | None = None
        self._grace, self._first, self._before = grace, 0.0, dict[int, Any]()

    def __enter__(self) -> _Signals:
        for number in stop.SIGNALS:
            handler = signal.getsignal(number)
            if number != getattr(signal, "SIGHUP", None) or handler != signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _: int, __: FrameType | None) -> None:
        now = time.monotonic()
        if self.engine is None:
            end_process()
        elif not self._first:
            self._first = now
            self.engine.stop(self._grace)
            stop.write(2, f"\nstopping: running requests have {self._grace:g} s to finish; Ctrl-C again cancels them\n")
        elif now - self._first > stop.FORCE_AFTER:
            self.engine.stop(0)
