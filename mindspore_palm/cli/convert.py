"""``palm convert``: converts weights from and to other PaLMs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspore_palm.errors import UserError
from mindspore_palm.file_names import TOKENIZER
from mindspore_palm.options import Parser, add_device, naming_options
from mindspore_palm.parallel.workers import refuse_workers

FORMATS = "mindspore_palm (the default: a folder of a trained model), lucidrains, conceptofmind,\nflaxformer, "
FORMATS += "huggingface-safetensors, mindir"


EXAMPLES = (
    f"--from lucidrains palm.pt --to runs/imported --tokenizer {TOKENIZER}",
    "--from runs/palm_tiny --to huggingface-safetensors exported",
)


def main() -> None:
    """Converts a model, and prints how far its logits are from the original's."""
    description = f"Converts a PaLM and compares logits.\n\nformats: {FORMATS}"
    parser = Parser(description=description, examples=EXAMPLES)
    both: dict[str, Any] = {"nargs": "+", "required": True, "metavar": ("FORMAT", "PATH"), "help": "format and path"}
    parser.add_argument("--from", dest="source", **both)
    parser.add_argument("--to", **both)
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer that goes with an imported model")
    parser.add_argument("--seq-len", type=int, help="training sequence length of an imported model")
    parser.add_argument("--vocab-size", type=int, help="number of real tokens, if an imported table is padded")
    parser.add_argument("--norm-scale", choices=("around_zero", "around_one"), help="how imported norms store scales")
    parser.add_argument("--batch", type=int, default=2, help="batch size of an exported graph, and of the comparison")
    parser.add_argument("--length", type=int, default=64, help="sequence length of both")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="maximum size of a huggingface-safetensors file")
    parser.add_argument("--widen", action="store_true", help="for lucidrains: the same model in twice the width")
    add_device(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")
    arguments = parser.parse_args()
    refuse_workers("the conversion")
    source, target = format_and_path(arguments.source, "--from"), format_and_path(arguments.to, "--to")
    for name in ("seq_len", "vocab_size", "batch", "length", "shard_gb"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value} must be above 0")
    from mindspore_palm.convert.convert import convert
    from mindspore_palm.convert.model import Options

    options = Options(
        vocab_size=arguments.vocab_size,
        norm_scale=arguments.norm_scale,
        shape=(arguments.batch, arguments.length),
        shard_bytes=int(arguments.shard_gb * 1e9),
        device=arguments.device,
    )
    tokenizer = Path(arguments.tokenizer) if arguments.tokenizer else None
    with naming_options({"leave data.tokenizer empty": "leave --tokenizer out", "data.tokenizer": "--tokenizer"}):
        convert(source, target, options, print, tokenizer, arguments.seq_len, arguments.overwrite, arguments.widen)


def format_and_path(words: list[str], option: str) -> tuple[str, Path]:
    """Format and path from the words after an option."""
    if len(words) > 2:
        raise UserError(f"{option} {' '.join(words)}: write a format and a path, or only the path of a folder")
    return (words[0], Path(words[1])) if len(words) == 2 else ("mindspore_palm", Path(words[0]))
