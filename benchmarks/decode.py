"""Decoding and reading prompts, compared with the machine's limits and with alternatives: greedy, float32.

    pip install -r benchmarks/requirements.txt
    python benchmarks/decode.py [--batches 1,8,64] [--contexts 128] [--prompts 64,512] [--rounds 5] [--json FILE]

The limit of a decoding step is the roofline (Williams et al., 2009): the longer of two times. Memory: the bytes of
every weight, key and value of the context, each read once, at the bandwidth of this machine (bandwidth.cc). Arithmetic:
the FLOPs of all matmuls, at the rate of a matmul of 2048 x 2048. A prompt reads each weight for many tokens: its limit
is arithmetic alone. Both rates vary with other load on the host. So they are measured before and after each turn of a
contender; the turn is compared with the fastest matmul of both, and with the median of the blocks of 64 MB that were
read, and with the fastest of them.

Contenders have the same 102 M parameters: this package; this package with multi-head attention and a smaller d_ff;
PaLM-pytorch with a cache, eager and under torch.compile; and PaLM-pytorch as published, which has no cache and computes
the full context for every token. The cached version consists of its blocks and functions, around a cache that is
allocated once. In its favour, attention reads only the part of the cache that is filled, and logits of a prompt are
those of the last token.

Each contender runs in its own process, and they take turns. Every step decodes the last position of a filled cache, or
reads a prompt. The output has medians of times, of ratios to this package by round, and of shares of the limit by turn;
last, the share of the limit with the fastest block. ``benchmarks/page.py`` makes the table of docs/benchmarks.md of the
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import Machine, Rates, measured_on  # noqa: E402 - found by the path above
from turns import Contender  # noqa: E402

SIZES = dict(layers=10, d_model=768, heads=12, head_dim=64, d_ff=3072, vocab_size=24576)
MULTI_HEAD = dict(attention="multi_head", d_ff=2592)
MAX_FLOPS = 20e12  # per step; PaLM-pytorch without a cache is left out where it takes more
WARM_UP = 3


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


def reading(length, **changes):
    """A step of this package that reads a prompt."""
    from mindspore_palm import PaLM
    from mindspore_palm.generate.decoder import Decoder
    from mindspore_palm.parallel.context import open_device

    open_device("CPU")
    decoder = Decoder(PaLM(config_of(**changes)), 1, length)
    return lambda: decoder.read([[1] * length])


def torch_palm():
    import torch
    from palm_pytorch import PaLM

    from mindspore_palm.machine import processors

    torch.manual_seed(0)
    torch.set_num_threads(processors())
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


def torch_reading(length, compiled):
    """A step of PaLM-pytorch that reads a prompt."""
    import torch

    *body, unembed = torch_palm()
    ids = torch.ones((1, length), dtype=torch.long)

    def read(ids):
        x = ids
        for part in body:
            x = part(x)
        return unembed(x[:, -1])

    read = torch.compile(read) if compiled else read

    @torch.inference_mode()
    def step():
        return read(ids)

    return step


CONTENDERS = {
    "mindspore_palm": decoding,
    "multi-head": partial(decoding, **MULTI_HEAD),
    "torch, cache": partial(torch_cached, compiled=False),
    "torch.compile, cache": partial(torch_cached, compiled=True),
    "torch, no cache": torch_uncached,
}
READERS = {
    "mindspore_palm": reading,
    "multi-head": partial(reading, **MULTI_HEAD),
    "torch, cache": partial(torch_reading, compiled=False),
    "torch.compile, cache": partial(torch_reading, compiled=True),
}


def config_for(name):
    """The configuration of a contender."""
    return config_of(**(MULTI_HEAD if name == "multi-head" else {}))


def bytes_per_step(config, batch, context):
    """Bytes of every weight, and of every key and value of the context."""
    cache = 2 * config.layers * config.kv_heads * config.head_dim * context * batch
    return 4 * (config.parameter_count() + cache)


def flops_per_step(config, batch, context):
    """FLOPs of a token of each sequence at the end of the context: 2 per weight, and 4*L*H*K*C of attention."""
    return batch * (2 * config.parameter_count() + config.score_flops_per_token(context) // 3)


def flops_of_prompt(config, length):
    """FLOPs of a prompt: a token sees itself and those before it, and only the last one has logits."""
    unembed = config.vocab_size * config.d_model
    attention = config.score_flops_per_token(1) // 3 * length * (length + 1) // 2
    return 2 * (config.parameter_count() - unembed) * length + 2 * unembed + attention


class Turn(NamedTuple):
    """A turn of a contender: seconds of its median step, and the machine's rates."""

    seconds: float
    rates: Rates


def take_turns(steps, rounds):
    """The turns of each contender.

    Args:
        steps: for each name, what makes its step, and how many steps a turn has.
        rounds: turns of each.
    """
    contenders = {name: Contender(make, warm_up=min(WARM_UP, count)).wait() for name, (make, count) in steps.items()}
    machine, turns = Machine(), {name: [] for name in steps}
    for _ in range(rounds):
        machine.measure()
        for name, contender in contenders.items():
            seconds = statistics.median(contender.steps(steps[name][1]))
            turns[name].append(Turn(seconds, machine.measure()))
    for contender in (machine, *contenders.values()):
        contender.close()
    return turns


def row_of(turns, tokens, first, limit):
    """Medians of a contender's turns: tokens/s, time over the first one's, and shares of the limit.

    Args:
        turns: its turns.
        tokens: per step.
        first: the turns of the first contender.
        limit: the least seconds of a step, for bytes/s and FLOP/s.
    """
    median = statistics.median
    return {
        "tokens_per_second": tokens / median(turn.seconds for turn in turns),
        "times_ours": median(turn.seconds / ours.seconds for turn, ours in zip(turns, first, strict=True)),
        "of_limit": median(limit(rates.memory, rates.arithmetic) / seconds for seconds, rates in turns),
        "of_fastest": median(limit(rates.fastest_memory, rates.arithmetic) / seconds for seconds, rates in turns),
    }


def rates_of(turns):
    """Medians of all turns, in 10^9 per second."""
    rates = [turn.rates for of_one in turns.values() for turn in of_one]
    memory, _, arithmetic = (statistics.median(rate) / 1e9 for rate in zip(*rates, strict=True))
    return {"gigabytes_per_second": memory, "peak_gflops": arithmetic}


def decode(batch, context, names, rounds, steps):
    """Results of decoding: the machine's rates, the limit, and a row of each contender."""
    makers = {name: (partial(CONTENDERS[name], batch, context), steps) for name in names}
    if "torch, no cache" in names:
        makers["torch, no cache"] = makers["torch, no cache"][0], 1
        if flops_per_step(config_of(), batch, context) * context > MAX_FLOPS:
            del makers["torch, no cache"]
    turns, rows = take_turns(makers, rounds), {}

    def limit(name, memory, arithmetic):
        sizes = config_for(name), batch, context
        return max(bytes_per_step(*sizes) / memory, flops_per_step(*sizes) / arithmetic)

    for name, of_one in turns.items():
        rows[name] = row_of(of_one, batch, turns[names[0]], partial(limit, name))
    rates = rates_of(turns)
    memory, arithmetic = (1e9 * rate for rate in rates.values())
    seconds = limit(names[0], memory, arithmetic)
    by_memory = seconds == bytes_per_step(config_for(names[0]), batch, context) / memory
    limits = {"limit": batch / seconds, "limited_by": "memory" if by_memory else "arithmetic"}
    return {"batch": batch, "context": context, **rates, **limits, "figures": rows}


def read(length, names, rounds, steps):
    """Results of reading a prompt, as those of decoding."""
    count = max(1, 64 * steps // length)
    turns = take_turns({name: (partial(READERS[name], length), count) for name in names if name in READERS}, rounds)

    def limit(name, _, arithmetic):
        return flops_of_prompt(config_for(name), length) / arithmetic

    rows = {name: row_of(of_one, length, turns[names[0]], partial(limit, name)) for name, of_one in turns.items()}
    peak = rates_of(turns)["peak_gflops"]
    return {"prompt": length, "peak_gflops": peak, "limit": length / limit(names[0], 0, 1e9 * peak), "figures": rows}


def show(result):
    """Prints a result."""
    peak, limit = f"{result['peak_gflops']:.1f} GFLOP/s", f"{result['limit']:,.0f} tokens/s"
    if "prompt" in result:
        print(f"prompt of {result['prompt']}: limit {limit} at {peak}")
    else:
        rates = f"{result['gigabytes_per_second']:.1f} GB/s and {peak}"
        where = f"batch {result['batch']}, context {result['context']}"
        print(f"{where}: limit {limit} by {result['limited_by']}, at {rates}")
    for name, row in result["figures"].items():
        shares = f"{row['of_limit']:8.1%}{row['of_fastest']:8.1%}"
        print(f"  {name:<22}{row['tokens_per_second']:10,.1f}{row['times_ours']:8.2f}x{shares}", flush=True)


def numbers(text):
    """The numbers of a list with commas."""
    return [int(number) for number in text.split(",") if number]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=numbers, default="1,2,4,8,16,32,64", help="sequences; '' for none")
    parser.add_argument("--contexts", type=numbers, default="128")
    parser.add_argument("--prompts", type=numbers, default="64,512,2048", help="lengths of prompts; '' for none")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="tokens per turn; fewer of long prompts")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    names, rounds, steps = arguments.contenders, arguments.rounds, arguments.steps
    for name in ("mindspore_palm", "multi-head"):
        config = config_for(name)
        cache = bytes_per_step(config, 1, 1) - bytes_per_step(config, 1, 0)
        print(f"{name}: {config.parameter_count():,} parameters, {cache:,} bytes of cache per token")
    print("contender, tokens/s, time over the first one's, share of its limit, share with the fastest block")
    results = {**measured_on(), "rounds": rounds, "steps": steps, "decoding": [], "prompts": []}
    runs = [
        ("decoding", partial(decode, batch, context)) for context in arguments.contexts for batch in arguments.batches
    ]
    runs += [("prompts", partial(read, length)) for length in arguments.prompts]
    for kind, run in runs:
        result = run(names, rounds, steps)
        results[kind].append(result)
        show(result)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
