"""``palm generate``: a trained PaLM continues a prompt."""

from __future__ import annotations

import os
from pathlib import Path

from mindspore_palm import invocation
from mindspore_palm.errors import UserError
from mindspore_palm.launch.interrupts import Interrupts
from mindspore_palm.options import Parser, add_device, naming_options

EXAMPLES = (
    '--checkpoint runs/palm_tiny "def main("',
    '--checkpoint runs/palm_tiny --temperature 0 --max-tokens 50 "import " "class "',
    "--checkpoint runs/palm_tiny --interactive",
)


def main() -> None:
    """Continues the prompts of the arguments."""
    description = "Continues prompts with a trained PaLM; the text streams as it comes."
    parser = Parser(description=description, examples=EXAMPLES)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="start of a text; several are continued together")
    parser.add_argument("--checkpoint", required=True, metavar="FOLDER", help="a run, or a model in it")
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        action="append",
        default=[],
        help="a prompt from a file, or from standard input: -; may be repeated",
    )
    parser.add_argument("--interactive", action="store_true", help="continue what you type")
    parser.add_argument("--max-tokens", type=int, default=256, help="maximum number of generated tokens; 256")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token; 0.8")
    parser.add_argument("--top-k", type=int, default=0, help="draw from this many of the likeliest tokens; 0: from all")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="draw from the likeliest tokens of this probability; 0.95"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: fewer repeated tokens; 1")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another text; 0")
    parser.add_argument("--context", type=int, default=0, help="tokens the model sees; 0: as many as in training")
    parser.add_argument("--log-probs", action="store_true", help="list every token with its log-probability")
    add_device(parser)
    parser.add_argument("--devices", type=int, default=1, help="shard heads and vocabulary over this many; 1")
    arguments = parser.parse_intermixed_args()
    interrupts = Interrupts()
    if arguments.devices == 1:  # workers would inherit that Ctrl-C is blocked
        interrupts.listen()
    from mindspore_palm.data.prompt_file import prompt_of, read_prompt
    from mindspore_palm.files import existing_folder
    from mindspore_palm.generate.sampling import Sampling

    prompts = [prompt_of(os.fsencode(prompt), "the prompt") for prompt in arguments.prompts]
    if arguments.prompt_file.count("-") > 1:
        raise UserError("--prompt-file - is given twice, and standard input is read once; give it once")
    prompts += [read_prompt(file) for file in arguments.prompt_file]
    if not prompts and not arguments.interactive:
        raise UserError('there is no prompt; write one, such as "def main(", or --prompt-file FILE, or --interactive')
    names = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed")
    with naming_options({name: f"--{name.replace('_', '-')}" for name in names}):
        sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    if arguments.devices < 1:
        raise UserError(f"--devices {arguments.devices}: set it to 1 or more")
    existing_folder(Path(arguments.checkpoint))
    from mindspore_palm.generate.command import GenerateOptions, run  # starts MindSpore, which nothing above needs

    options = GenerateOptions(
        checkpoint=Path(arguments.checkpoint),
        prompts=tuple(prompts),
        sampling=sampling,
        context=arguments.context,
        interactive=arguments.interactive,
        log_probs=arguments.log_probs,
        device=arguments.device,
        devices=arguments.devices,
    )
    with naming_options({"leave data.tokenizer empty": "copy the tokenizer that the model was trained with there"}):
        run(options, invocation.script_and_arguments(), interrupts)
