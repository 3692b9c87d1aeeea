"""What a checkpoint says in words and numbers, beside weights and optimizer state."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import mindspore as ms
import numpy as np

from mindspore_palm.checkpoint.progress import Progress, skipped
from mindspore_palm.config import Settings
from mindspore_palm.data import Batches, Prepared
from mindspore_palm.data.split import SPLITS


def state_of(settings: Settings, prepared: Prepared, progress: Progress, batches: Batches) -> dict[str, Any]:
    """state.json: what decides the next step, and what helps to understand the last ones.

    There is no random state: initial weights, batches and what dropout leaves of them are functions of seed and step.
    """
    return {
        "progress": progress.to_json(),
        "data": {
            "position": batches.position(progress.step),
            "epoch": batches.epoch(progress.step),
            "skipped": skipped(progress.rewinds, batches.order_name),
        },
        "seed": settings.train.seed,
        "corpus": fingerprint(prepared),
        "versions": {"python": platform.python_version(), "mindspore": ms.__version__, "numpy": np.__version__},
    }


def fingerprint(prepared: Prepared) -> dict[str, Any]:
    """By which tokenizer and text are known again, wherever they lie: hashes of the tokenizer and of what is learned.

    ``train`` and ``validation`` hold each a ``sha256``: of all tokens in their order, which no other order of the
    documents and no changed digit gives; of pairs, of their texts in order. ``any_share`` says that the text is split
    as earlier versions did, see ``Pinned``.
    """
    return {
        "tokenizer": hashlib.sha256(prepared.tokenizer.serialized).hexdigest(),
        **{name: prepared.meta[name] for name in SPLITS},
        "gzip9_bits_per_byte": prepared.meta["gzip9_bits_per_byte"],
        **({"any_share": True} if prepared.meta.get("any_share") else {}),
    }
