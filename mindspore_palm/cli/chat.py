"""``palm chat``: a conversation with a trained PaLM in the terminal."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.errors import UserError
from mindspore_palm.launch.interrupts import Interrupts
from mindspore_palm.options import Parser, add_device, naming_options
from mindspore_palm.parallel.workers import refuse_workers

EXAMPLES = (
    "runs/palm_tiny",
    "runs/finetune --temperature 0",
    'runs/finetune --template "Question: {} Answer:"',
)


def main() -> None:
    """Talks with a model until the end of input."""
    description = (
        "A conversation with a trained PaLM. One that was fine-tuned on pairs answers each message as it learned to "
        "answer prompts; any other continues the text that you write in turns."
    )
    parser = Parser(description=description, examples=EXAMPLES)
    parser.add_argument("model", metavar="FOLDER", help="a run, or a model in it")
    parser.add_argument(
        "--style",
        choices=("auto", "pairs", "text"),
        default="auto",
        help="pairs: each message is a prompt by itself; text: one text; auto: as the model was trained",
    )
    parser.add_argument("--template", default="", metavar="TEXT", help="the prompt of a message, with {} in its place")
    parser.add_argument("--max-tokens", type=int, default=256, help="maximum number of tokens of an answer; 256")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token; 0.8")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="draw from the likeliest tokens of this probability; 0.95"
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other answers; 0")
    parser.add_argument("--context", type=int, default=0, help="tokens the model sees; 0: as many as in training")
    add_device(parser)
    arguments = parser.parse_args()
    refuse_workers("the chat")
    if arguments.template and "{}" not in arguments.template:
        raise UserError(f"--template {arguments.template!r}: write {{}} where the message goes")
    interrupts = Interrupts()
    interrupts.listen()
    from mindspore_palm.files import existing_folder
    from mindspore_palm.generate.sampling import Sampling

    names = ("max_tokens", "temperature", "top_p", "stop", "seed")
    with naming_options({name: f"--{name.replace('_', '-')}" for name in names}):
        sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    existing_folder(Path(arguments.model))
    from mindspore_palm.generate.chat import ChatOptions, run  # starts MindSpore, which nothing above needs

    folder, context, device = Path(arguments.model), arguments.context, arguments.device
    run(ChatOptions(folder, sampling, arguments.style, arguments.template, context, device), interrupts)
