"""Weights from and to other PaLMs: python run/convert.py --from lucidrains palm.pt --to runs/imported"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspore_palm.errors import UserError
from mindspore_palm.launch.command import run_process
from mindspore_palm.options import Parser, naming_options
from mindspore_palm.parallel.workers import refuse_workers

FORMATS = "mindspore_palm (a folder that training left; need not be named), lucidrains, conceptofmind, flaxformer, "
FORMATS += "huggingface-safetensors, mindir"


def main() -> None:
    parser = Parser(description="Converts a PaLM and compares logits.", epilog=f"formats: {FORMATS}")
    both = {"nargs": "+", "required": True, "metavar": ("FORMAT", "PATH"), "help": "format and place"}
    parser.add_argument("--from", dest="source", **both)
    parser.add_argument("--to", **both)
    parser.add_argument("--tokenizer", metavar="FILE", help="SentencePiece model that goes with an imported model")
    parser.add_argument("--seq-len", type=int, help="tokens that an imported model was trained on at once")
    parser.add_argument("--vocab-size", type=int, help="real tokens of an imported table that is padded")
    parser.add_argument("--norm-scale", choices=("around_zero", "around_one"), help="how imported norms store scales")
    parser.add_argument("--batch", type=int, default=2, help="sequences of an exported graph, and of the comparison")
    parser.add_argument("--length", type=int, default=64, help="tokens of each of them")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="most of a huggingface-safetensors file")
    parser.add_argument("--widen", action="store_true", help="for lucidrains: the same function in twice the width")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    arguments = parser.parse_args()
    refuse_workers("the conversion")
    source, target = place(arguments.source, "--from"), place(arguments.to, "--to")
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
    )
    tokenizer = Path(arguments.tokenizer) if arguments.tokenizer else None
    with naming_options({"leave data.tokenizer empty": "leave --tokenizer out", "data.tokenizer": "--tokenizer"}):
        convert(source, target, options, print, tokenizer, arguments.seq_len, arguments.overwrite, arguments.widen)


def place(words: list[str], option: str) -> tuple[str, Path]:
    """Format and path from what stands behind an option."""
    if len(words) > 2:
        raise UserError(f"{option} {' '.join(words)}: write a format and a path, or the path of a folder of ours alone")
    return (words[0], Path(words[1])) if len(words) == 2 else ("mindspore_palm", Path(words[0]))


if __name__ == "__main__":
    sys.exit(run_process(main, results=False))
