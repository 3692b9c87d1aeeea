"""``palm evaluate``: scores a trained model."""

from __future__ import annotations

from pathlib import Path

from mindspore_palm.file_names import CONFIG, MANIFEST, TOKENIZER
from mindspore_palm.files import existing_folder, write_json
from mindspore_palm.options import Parser, add_device, check_output
from mindspore_palm.parallel.workers import refuse_workers

MODEL = ("*.safetensors", CONFIG, TOKENIZER, MANIFEST)  # files of a trained model


EXAMPLES = (
    "--checkpoint runs/palm_tiny --data my.txt",
    "--checkpoint runs/palm_tiny --task questions.jsonl --shots 2 --json scores.json",
)


def main() -> None:
    """Prints the scores of a model."""
    parser = Parser(description="Scores a trained model on held-out text and on questions.", examples=EXAMPLES)
    parser.add_argument("--checkpoint", metavar="FOLDER", required=True, help="folder of a trained model")
    parser.add_argument("--data", metavar="PATH", action="append", default=[], help="held-out text; may be repeated")
    parser.add_argument("--text-field", default="text", help="the field of .jsonl and .parquet that holds text")
    parser.add_argument("--window", type=int, help="tokens per window; default: the training sequence length")
    parser.add_argument("--stride", type=int, help="tokens between the starts of windows; default: the window")
    parser.add_argument("--task", metavar="FILE", action="append", default=[], help=".jsonl of questions; repeatable")
    parser.add_argument("--shots", type=int, default=0, help="worked examples before each question")
    parser.add_argument("--examples", metavar="FILE", help=".jsonl of worked examples; default: the other questions")
    parser.add_argument("--seed", type=int, default=0, help="decides which examples are drawn")
    parser.add_argument("--stop", metavar="TEXT", action="append", help="ends a generated answer; default: a new line")
    parser.add_argument("--max-tokens", type=int, default=64, help="maximum tokens of a generated answer")
    parser.add_argument("--batch", type=int, default=8, help="sequences per batch")
    add_device(parser)
    parser.add_argument("--json", metavar="FILE", help="also write all results to this file")
    arguments = parser.parse_args()
    refuse_workers("the evaluation")
    if arguments.json is not None:
        inputs = [*arguments.data, *arguments.task, *([arguments.examples] if arguments.examples else [])]
        inputs += [file for name in MODEL for file in Path(arguments.checkpoint).rglob(name)]
        check_output("--json", arguments.json, inputs)
    existing_folder(Path(arguments.checkpoint))
    from mindspore_palm.evaluate.evaluate import (  # starts MindSpore, which nothing above needs
        EvaluateOptions,
        evaluate,
    )

    options = EvaluateOptions(
        text=arguments.data,
        text_field=arguments.text_field,
        window=arguments.window,
        stride=arguments.stride,
        tasks=[Path(file) for file in arguments.task],
        examples=Path(arguments.examples) if arguments.examples else None,
        shots=arguments.shots,
        seed=arguments.seed,
        batch=arguments.batch,
        stop=arguments.stop or ["\n"],
        max_tokens=arguments.max_tokens,
        device=arguments.device,
    )
    results = evaluate(arguments.checkpoint, options, lambda table: print(table, flush=True))
    if arguments.json is not None:
        write_json(Path(arguments.json), results)
