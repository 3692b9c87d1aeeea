"""State dictionaries of PyTorch's PaLMs without PyTorch, written by hand from the packages' code."""

from __future__ import annotations

import json
import struct

import numpy as np
from safetensors.numpy import save_file

D, LAYERS, HEADS, K, F, VOCAB = 24, 2, 3, 6, 48, 61
FORMATS = {
    "lucidrains": {
        "table": "0.weight",
        "block": "{n}.fn",
        "down": "ff_out.1.weight",
        "norm": "3",
        "logits": "4.weight",
    },
    "conceptofmind": {
        "table": "token_emb.weight",
        "block": "layers.{i}.fn",
        "down": "ff_out.2.weight",
        "norm": "norm",
        "logits": "to_logits.weight",
    },
}


def state_of(name, seed=3):
    """Arrays by name: random weights, and the package's buffers."""
    rng, names = np.random.default_rng(seed), FORMATS[name]
    around = 1.0 if name == "lucidrains" else 0.0
    table = rng.normal(0, 0.3, (VOCAB, D))
    state = {names["table"]: table, names["logits"]: table}
    for i in range(LAYERS):
        block = names["block"].format(i=i, n=i + 1)
        state[f"{block}.norm.gamma"] = rng.normal(around, 0.4, D)
        state[f"{block}.norm.beta"] = np.zeros(D)
        state[f"{block}.rotary_emb.inv_freq"] = 1 / 10000 ** (np.arange(0, K, 2) / K)
        if name == "conceptofmind":
            state[f"{block}.rotary_emb.scale"] = (np.arange(0, K, 2) + 0.4 * K) / (1.4 * K)
        state[f"{block}.fused_attn_ff_proj.weight"] = rng.normal(0, 0.3, (HEADS * K + 2 * K + 2 * F, D))
        state[f"{block}.attn_out.weight"] = rng.normal(0, 0.3, (D, HEADS * K))
        state[f"{block}.{names['down']}"] = rng.normal(0, 0.3, (D, F))
    state |= {f"{names['norm']}.gamma": rng.normal(around, 0.4, D), f"{names['norm']}.beta": np.zeros(D)}
    return {key: np.ascontiguousarray(array, np.float32) for key, array in state.items()}


def first(state, ending):
    """The first name with an ending."""
    return next(key for key in state if key.endswith(ending))


def save(state, file, metadata=None):
    save_file(state, file, metadata)
    return file


def save_typed(state, file, name, kind, size):
    """As ``save``, with one tensor of a dtype that NumPy does not have, which takes ``size`` bytes per value."""
    header, data = {}, b""
    for key, array in state.items():
        content = bytes(int(array.size * size)) if key == name else array.tobytes()
        dtype = kind if key == name else "F32"
        header[key] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def logits_of(name, state, tokens):
    """Logits of the package's code, written again in float64.

    Rows are q | k | v | up | gate, layer norms have epsilon 1e-5, the rotation is a matrix of each pair, and xPos acts
    by distance (offsets of positions cancel).
    """
    names, state = FORMATS[name], {key: array.astype(np.float64) for key, array in state.items()}
    shift = 0.0 if name == "lucidrains" else 1.0

    def norm(x, key):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * (state[f"{key}.gamma"] + shift)

    def rotated(x, frequencies, lengthen):
        out = np.empty_like(x)
        for position in range(x.shape[-2]):
            for pair, frequency in enumerate(frequencies):
                a, b = x[..., position, pair], x[..., position, pair + K // 2]
                c, s = np.cos(position * frequency), np.sin(position * frequency)
                longer = 1.0 if shift == 0.0 else ((2 * pair + 0.4 * K) / (1.4 * K)) ** (lengthen * position / 512)
                out[..., position, pair] = longer * (a * c - b * s)
                out[..., position, pair + K // 2] = longer * (b * c + a * s)
        return out

    x = state[names["table"]][tokens]
    for i in range(LAYERS):
        block = names["block"].format(i=i, n=i + 1)
        y, frequencies = norm(x, f"{block}.norm"), state[f"{block}.rotary_emb.inv_freq"]
        rows = y @ state[f"{block}.fused_attn_ff_proj.weight"].T
        q, k, v, up, gate = np.split(rows, np.cumsum([HEADS * K, K, K, F]), axis=-1)
        q = rotated(q.reshape(*q.shape[:2], HEADS, K).transpose(0, 2, 1, 3), frequencies, 1)
        scores = q @ rotated(k, frequencies, -1)[:, None].swapaxes(-1, -2) / np.sqrt(K)
        scores[..., ~np.tri(tokens.shape[1], dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (weights / weights.sum(-1, keepdims=True)) @ v[:, None]
        attended = attended.transpose(0, 2, 1, 3).reshape(*tokens.shape, -1)
        mlp = gate / (1 + np.exp(-gate)) * up
        x = x + attended @ state[f"{block}.attn_out.weight"].T + mlp @ state[f"{block}.{names['down']}"].T
    return norm(x, names["norm"]) @ state[names["logits"]].T
