"""``palm serve``: a trained PaLM answers requests over HTTP, in the format of OpenAI's completions."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

from mindspore_palm.errors import UserError
from mindspore_palm.options import Parser, add_device
from mindspore_palm.parallel.workers import refuse_workers

EXAMPLES = (
    "runs/palm_tiny",
    "runs/palm_tiny --places 16 --queue 64 --max-tokens 512",
    "runs/palm_tiny/final --host 0.0.0.0 --port 8080 --name palm",
)
LIBRARIES = ("starlette", "uvicorn")


def main() -> None:
    """Serves a model until it is stopped."""
    parser = Parser(description="Answers requests over HTTP, in the format of OpenAI's completions.", examples=EXAMPLES)
    parser.add_argument("model", metavar="FOLDER", help="a run, or a model in it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one; 8000")
    parser.add_argument("--places", type=int, default=8, help="texts that are generated together; 8")
    parser.add_argument("--queue", type=int, default=32, help="texts that may wait for a place; 32")
    parser.add_argument("--max-tokens", type=int, default=1024, help="limit of a request's max_tokens; 1024")
    parser.add_argument("--context", type=int, default=0, help="tokens the model sees; 0: as many as in training")
    parser.add_argument(
        "--grace", type=float, default=10.0, help="seconds that running requests have to finish at the end; 10"
    )
    parser.add_argument("--name", default="", help="of the model in the API; default: the folder's")
    add_device(parser)
    arguments = parser.parse_args()
    refuse_workers("the server")
    rules = {
        "port": (0 <= arguments.port < 65536, "0 (any free one) to 65535"),
        "places": (1 <= arguments.places <= 1024, "1 to 1024"),
        "queue": (arguments.queue >= 0, "0 (a request that finds no free place is refused) or more"),
        "max-tokens": (arguments.max_tokens >= 1, "1 or more"),
        "grace": (0 <= arguments.grace <= 3600, "0 to 3600 seconds"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise UserError(f"--{name} {getattr(arguments, name.replace('-', '_'))}: must be {rule}")
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise UserError(
            f"palm serve needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "pip install 'mindspore_palm[serve]', or '.[serve]' in a checkout"
        )
    from mindspore_palm.files import existing_folder

    existing_folder(Path(arguments.model))
    with listen(arguments.host, arguments.port) as listener:
        from mindspore_palm.serve.server import ServeOptions, run  # starts MindSpore, which nothing above needs

        options = {name: value for name, value in vars(arguments).items() if name != "model"}
        run(ServeOptions(model=Path(arguments.model), **options), listener)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, before the model is loaded.

    Raises:
        UserError: there is no such address, or another program has the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: there is no such address; 127.0.0.1 is this machine alone") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # two sockets may be bound to a port that nobody listens at yet
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise UserError(f"--port {port}: cannot listen at {host}: {reason}; choose another, such as 0") from None
    return listener
