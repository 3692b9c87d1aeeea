"""state.json of a checkpoint: everything beside weights and optimizer state."""

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
    """Content of state.json: progress, position in the data, and versions for debugging.

    There is no random state: initial weights, batches and dropout masks are functions of seed and step.
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
    """Hashes that identify tokenizer and text by content, wherever they are stored.

    ``train`` and ``validation`` each hold a ``sha256``. For text it covers all tokens in order: another order of the
    documents or a single changed digit gives another hash. For pairs it covers their texts in order. ``any_share``
    marks a text that is split as earlier versions split it, see ``Pinned``.
    """
    return {
        "tokenizer": hashlib.sha256(prepared.tokenizer.serialized).hexdigest(),
        **{name: prepared.meta[name] for name in SPLITS},
        "gzip9_bits_per_byte": prepared.meta["gzip9_bits_per_byte"],
        **({"any_share": True} if prepared.meta.get("any_share") else {}),
    }
