"""Decoding compared with the memory-bandwidth limit and with alternatives: tokens/s, greedy, float32.

    pip install -r benchmarks/requirements.txt
    python benchmarks/decode.py [--batches 1,8,32] [--contexts 128,1024] [--rounds 5] [--steps 10] [--json FILE]

The limit is the memory bandwidth of this machine (bandwidth.cc) over the bytes of a step: every weight, key and value
of the context is read once. Bandwidth varies with other load on the host. So it is measured before and after each turn
of a contender, in blocks of 64 MB, and the turn is compared with their median and with the fastest of them.

Contenders have the same 102 M parameters: this package; this package with multi-head attention and a smaller d_ff;
PaLM-pytorch with a cache, eager and under torch.compile; and PaLM-pytorch as published, which has no cache and computes
the full context for every token. The cached version consists of its blocks and functions, around a cache that is
allocated once. In its favour, attention reads only the part of the cache that is filled.

Each contender runs in its own process, and they take turns. Every step decodes the last position of a filled cache. The
output has medians of times, of ratios to this package by round, and of shares of the limit by turn; last, the share of
the limit with the fastest block.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from turns import Contender  # noqa: E402 - found by the path above

SIZES = dict(layers=10, d_model=768, heads=12, head_dim=64, d_ff=3072, vocab_size=24576)
MULTI_HEAD = dict(attention="multi_head", d_ff=2592)
MAX_FLOPS = 20e12  # per step; PaLM-pytorch without a cache is left out where it takes more
WARM_UP = 3
BLOCK = 4 * (2**24 - 64 * 128)  # bytes that a step of `reading` reads at least, with up to 128 cores
BLOCKS = 60  # blocks read before and after a turn


def config_of(**changes):
    from mindspore_palm import PaLMConfig

    return PaLMConfig(**{**SIZES, **changes})


def decoding(batch, context, **changes):
    """A step of this package: one token for each sequence."""
    import numpy as np

    from mindspore_palm import PaLM
    from mindspore_palm.generate.decoder import Decoder
    from mindspore_palm.parallel.context import open_device

    open_device("CPU")
    decoder = Decoder(PaLM(config_of(**changes)), batch, context)
    logits, _ = decoder.read([[1] * (context - 1)] * batch)
    last = np.full(batch, context - 1)  # every step decodes the last position of the context

    def step():
        nonlocal logits
        logits, _ = decoder.write(logits.argmax(-1), last)

    return step


def torch_palm():
    import torch
    from palm_pytorch import PaLM

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    sizes = {"dim": "d_model", "num_tokens": "vocab_size", "depth": "layers", "heads": "heads", "dim_head": "head_dim"}
    return PaLM(**{theirs: SIZES[ours] for theirs, ours in sizes.items()}).eval()


def torch_uncached(batch, context):
    """A step of PaLM-pytorch as published: the full context for one token."""
    import torch

    palm, ids = torch_palm(), torch.ones((batch, context), dtype=torch.long)

    @torch.inference_mode()
    def step():
        return palm(ids)[:, -1].argmax(-1)

    return step


def torch_cached(batch, context, compiled):
    """A step of PaLM-pytorch's blocks around a cache."""
    import torch
    from palm_pytorch.palm_pytorch import apply_rotary_pos_emb

    embedding, *blocks, norm, unembed = torch_palm()
    blocks = [residual.fn for residual in blocks]
    shape = (len(blocks), batch, context, SIZES["head_dim"])
    keys, values = 0.1 * torch.randn(shape), 0.1 * torch.randn(shape)
    table = blocks[0].rotary_emb(context, device="cpu")

    def decode(token, position):
        x, rotation = embedding(token), table[position]
        for block, k_cache, v_cache in zip(blocks, keys, values, strict=True):
            q, k, v, mlp = block.fused_attn_ff_proj(block.norm(x)).split(block.fused_dims, dim=-1)
            q = apply_rotary_pos_emb(rotation, q.view(batch, block.heads, -1)) * block.scale
            k_cache[:, position], v_cache[:, position] = apply_rotary_pos_emb(rotation, k), v
            weights = (q @ k_cache[:, : position + 1].transpose(1, 2)).softmax(-1)
            attention = (weights @ v_cache[:, : position + 1]).view(batch, -1)
            x = x + block.attn_out(attention) + block.ff_out(mlp)
        return unembed(norm(x)).argmax(-1)

    decode = torch.compile(decode) if compiled else decode
    token = torch.ones(batch, dtype=torch.long)

    @torch.inference_mode()
    def step():
        nonlocal token
        token = decode(token, context - 1)

    return step


CONTENDERS = {
    "mindspore_palm": decoding,
    "multi-head": partial(decoding, **MULTI_HEAD),
    "torch, cache": partial(torch_cached, compiled=False),
    "torch.compile, cache": partial(torch_cached, compiled=True),
    "torch, no cache": torch_uncached,
}


def reading(folder):
    """A step that reads the next block of memory."""
    library = Path(folder) / "bandwidth.so"
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, ROOT / "benchmarks" / "bandwidth.cc", "-o", library], check=True)
    read_block, number = ctypes.CDLL(str(library)).ReadBlock, itertools.count()
    read_block.restype = ctypes.c_int64

    def step():
        if read_block(ctypes.c_int64(next(number))) < BLOCK:
            raise RuntimeError("ReadBlock read less than a block")

    return step


def bytes_per_step(config, batch, context):
    """Bytes of every weight, and of every key and value of the context."""
    cache = 2 * config.layers * config.kv_heads * config.head_dim * context * batch
    return 4 * (config.parameter_count() + cache)


def race(batch, context, names, rounds, steps):
    """Memory bandwidth, and for each contender tokens/s, time over the first one's, and shares of the limit."""
    contenders, times, shares, strict, speeds = {}, {}, {}, {}, []
    for name in names:
        if name == "torch, no cache" and 2 * config_of().parameter_count() * batch * context > MAX_FLOPS:
            continue
        contenders[name] = Contender(CONTENDERS[name], batch, context, warm_up=WARM_UP).wait()
        times[name], shares[name], strict[name] = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        memory = Contender(reading, folder).wait()
    for _ in range(rounds):
        before = memory.steps(BLOCKS)
        for name, contender in contenders.items():
            count = 1 if name == "torch, no cache" else steps
            seconds = statistics.median(contender.steps(count))
            after = memory.steps(BLOCKS)
            speed, fastest = (BLOCK / reduced(before + after) for reduced in (statistics.median, min))
            config = config_of(**(MULTI_HEAD if name == "multi-head" else {}))
            needed = bytes_per_step(config, batch, context) / seconds
            times[name].append(seconds)
            shares[name].append(needed / speed)
            strict[name].append(needed / fastest)
            speeds.append(speed)
            before = after
    for contender in (memory, *contenders.values()):
        contender.close()
    results = {}
    for name, seconds in times.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds, next(iter(times.values())), strict=True)]
        results[name] = {
            "tokens_per_second": batch / statistics.median(seconds),
            "times_ours": statistics.median(ratios),
            "of_limit": statistics.median(shares[name]),
            "of_fastest": statistics.median(strict[name]),
        }
    return {"bandwidth": statistics.median(speeds)} | results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--contexts", default="128,1024")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="tokens per turn")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    for name, changes in (("multi-query", {}), ("multi-head", MULTI_HEAD)):
        config = config_of(**changes)
        cache = bytes_per_step(config, 1, 1) - bytes_per_step(config, 1, 0)
        print(f"{name}: {config.parameter_count():,} parameters, {cache:,} bytes of cache per token")
    print("contender, tokens/s, time over the first one's, share of its limit, share with the fastest block")
    results = []
    for context in map(int, arguments.contexts.split(",")):
        for batch in map(int, arguments.batches.split(",")):
            measured = race(batch, context, arguments.contenders, arguments.rounds, arguments.steps)
            results.append({"batch": batch, "context": context} | measured)
            speed = measured.pop("bandwidth")
            limit = batch * speed / bytes_per_step(config_of(), batch, context)
            print(
                f"batch {batch}, context {context}: limit {limit:,.0f} tokens/s at {speed / 1e9:.1f} GB/s", flush=True
            )
            for name, row in measured.items():
                shares = f"{row['of_limit']:8.1%}{row['of_fastest']:8.1%}"
                print(f"  {name:<22}{row['tokens_per_second']:10,.1f}{row['times_ours']:8.2f}x{shares}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
