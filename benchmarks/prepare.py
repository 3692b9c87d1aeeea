"""Preparation of a corpus: encoding compared with SentencePiece's and Hugging Face's own batches, and peak memory.

    pip install 'tokenizers>=0.21'
    python benchmarks/prepare.py [--path python-stdlib] [--vocab 4096] [--rounds 5] [--json FILE]
    python benchmarks/prepare.py --megabytes 200 400 1000 [--json FILE]

The first form takes turns. A turn of this package is the encoding stage of ``palm prepare``: it hashes, reads and
splits the documents, encodes them, and writes the tokens to disk. The other two only encode: the documents are in
memory, and the tokens stay there. ``SentencePieceProcessor.encode`` has the same model; Hugging Face's ``encode_batch``
has a byte-level BPE of the same size, trained on the same text. All may use the same number of threads. The output has
medians over the rounds, and the median of the ratios by round; above 1, this package is faster.

The second form writes a .jsonl of that size, of the standard library again and again, in which no document is like
another, and prepares it in a new process, survey and tokenizer included. The output has the time, the processor time
and the peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from turns import Contender, in_new_process  # noqa: E402 - found by the path above


def texts_of(path):
    from mindspore_palm.data.corpus import documents

    return [document.text for document in documents(path, "text")]


def prepared(path, folder, vocab):
    from mindspore_palm.config import DataConfig
    from mindspore_palm.data import prepare

    return prepare(DataConfig(path=path, prepared=folder), vocab, progress=False)


def our_step(path, folder, vocab):
    """The encoding stage alone: survey and tokenizer of the folder are kept."""
    inside = prepared(path, folder, vocab).folder

    def run():
        for name in ("meta.json", "progress.json"):
            (inside / name).unlink()
        for name in ("train", "validation"):
            shutil.rmtree(inside / name)
        prepared(path, folder, vocab)

    return run


def sentencepiece_step(path, folder, vocab):
    import sentencepiece

    from mindspore_palm.machine import processors

    texts = texts_of(path)
    serialized = prepared(path, folder, vocab).tokenizer.serialized
    model = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    return lambda: model.encode(texts, num_threads=processors())


def trained_by_hugging_face(texts, vocab):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def hugging_face_step(path, _folder, vocab):
    from mindspore_palm.machine import processors

    os.environ["RAYON_NUM_THREADS"] = str(processors())
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = texts_of(path)
    tokenizer = trained_by_hugging_face(texts, vocab)
    return lambda: tokenizer.encode_batch(texts)


CONTENDERS = {
    "mindspore_palm": our_step,
    "SentencePiece": sentencepiece_step,
    "tokenizers": hugging_face_step,
}


def tokens_of(path, folder, vocab):
    """Bytes of the text, and tokens of each contender."""
    texts, ours = texts_of(path), prepared(path, folder, vocab)
    documents = sum(ours.meta[name]["documents"] for name in ("train", "validation"))
    of_model = len(ours.train) + len(ours.validation) - documents
    theirs = trained_by_hugging_face(texts, vocab)
    size = sum(len(text.encode()) for text in texts)
    count = sum(len(encoding.ids) for encoding in theirs.encode_batch(texts))
    return size, {"mindspore_palm": of_model, "SentencePiece": of_model, "tokenizers": count}


def race(path, vocab, rounds):
    """Bytes of the text; for each contender median seconds and speed, and the median of its time over ours."""
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk, not in memory
        size, tokens = in_new_process(tokens_of, path, folder, vocab)
        contenders = {name: Contender(make, path, folder, vocab, warm_up=1).wait() for name, make in CONTENDERS.items()}
        seconds, processor = {name: [] for name in contenders}, {name: [] for name in contenders}
        for _ in range(rounds):
            for name, contender in contenders.items():
                before = processor_seconds(contender)
                seconds[name].extend(contender.steps(1))
                processor[name].append(processor_seconds(contender) - before)
        for contender in contenders.values():
            contender.close()
    return size, {
        name: {
            "seconds": statistics.median(own),
            "processor_seconds": statistics.median(processor[name]),
            "tokens_per_second": tokens[name] / statistics.median(own),
            "megabytes_per_second": size / 1e6 / statistics.median(own),
            "times_ours": statistics.median(a / b for a, b in zip(own, seconds["mindspore_palm"], strict=True)),
        }
        for name, own in seconds.items()
    }


def processor_seconds(contender):
    """Processor time of a contender's process so far, over all threads."""
    import psutil

    times = psutil.Process(contender.process.pid).cpu_times()
    return times.user + times.system


def write_corpus(file, megabytes):
    """Writes documents of the standard library, each time with other line order, until the text has this size."""
    texts, size, copy = texts_of("python-stdlib"), 0, 0
    with open(file, "w", encoding="utf-8") as stream:
        while size < megabytes * 1e6:
            for number, text in enumerate(texts):
                lines = text.splitlines(keepends=True)
                start = copy * 7 % len(lines)
                document = f"# {number} of copy {copy}\n" + "".join(lines[start:] + lines[:start])
                stream.write(json.dumps({"text": document}) + "\n")
                size += len(document.encode())
                if size >= megabytes * 1e6:
                    break
            copy += 1


def prepare_all(file, folder, vocab):
    """Seconds, processor seconds, peak resident memory before and after in MiB, and tokens of a full preparation."""
    import mindspore_palm.data  # noqa: F401 - its memory is not the preparation's
    from mindspore_palm.machine import peak_memory

    before, start, cpu = peak_memory(), time.perf_counter(), time.process_time()
    found = prepared(file, folder, vocab)
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - cpu,
        "imports_mib": before / 2**20,
        "peak_mib": peak_memory() / 2**20,
        "tokens": len(found.train) + len(found.validation),
    }


def sizes(arguments):
    results = []
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            file = f"{folder}/corpus.jsonl"
            in_new_process(write_corpus, file, megabytes)
            row = in_new_process(prepare_all, file, folder, arguments.vocab)
        results.append({"megabytes": megabytes, **row})
        print(
            f"{megabytes:>6g} MB{row['seconds'] / 60:8.1f} min{row['processor_seconds']:8.0f} s of processor time"
            f"{row['peak_mib']:8.0f} MiB peak, of which{row['imports_mib']:5.0f} MiB are imports",
            flush=True,
        )
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="python-stdlib", help="as data.path")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, nargs="+", help="prepare generated text of these sizes instead")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.megabytes:
        results = {"preparations": sizes(arguments)}
    else:
        size, rows = race(arguments.path, arguments.vocab, arguments.rounds)
        results = {"bytes": size, "vocab": arguments.vocab, "rounds": arguments.rounds, "encoding": rows}
        print(f"{size / 1e6:.1f} MB, vocabulary of {arguments.vocab}: time, processor time, speed, time over the first")
        for name, row in rows.items():
            time_used = f"{row['seconds']:8.2f} s{row['processor_seconds']:8.2f} s"
            speed = f"{row['tokens_per_second'] / 1e6:8.2f} M tokens/s{row['megabytes_per_second']:8.1f} MB/s"
            print(f"  {name:<16}{time_used}{speed}{row['times_ours']:8.2f}x")
    if arguments.json:
        from machine import measured_on

        Path(arguments.json).write_text(json.dumps({**measured_on(), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
