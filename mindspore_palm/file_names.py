"""Names of the files and folders of a run: the one home of each.

The folder of a run, ``train.output``::

    config.yaml           settings
    metrics.csv           one row per step
    loss.png              those rows, drawn
    tensorboard/          the same for TensorBoard; tensorboard.tmp while it is rewritten
    trackers.json         which runs of wandb and trackio are this one, and how far they are
    wandb/                files of wandb, if it is used
    profile/              trace and tables of --profile
    rewinds.json          decisions to go back, and batches left out
    checkpoints/          one folder per checkpoint, such as step_000200
    final/                the trained model
    adapter.safetensors   weights trained by LoRA, alone
    workers/              logs of worker processes, one folder per attempt
    lock                  held by the process that trains here

A checkpoint holds manifest.json, state.json, config.yaml, tokenizer.model, and the shards in rank_0.safetensors and so
on.
A model holds model.safetensors, config.yaml, tokenizer.model and README.md, its card.
"""

from __future__ import annotations

CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"  # of either kind: a tokenizer.json is known by its content
TOKENIZER_JSON = "tokenizer.json"  # the same in a folder in Hugging Face style
WEIGHTS = "model.safetensors"
CARD = "README.md"
MANIFEST = "manifest.json"
STATE = "state.json"

METRICS = "metrics.csv"
LOSS_CHART = "loss.png"
TENSORBOARD = "tensorboard"
TRACKERS = "trackers.json"
PROFILE = "profile"
TRACE = "trace.json"
PROFILE_REPORT = "report.txt"
REWINDS = "rewinds.json"
CHECKPOINTS = "checkpoints"
FINAL = "final"
ADAPTER = "adapter.safetensors"
WORKERS = "workers"
LOCK = "lock"  # also of prepared text

TEMPORARY = ".tmp"  # ending of what is still being written
GONE = f".gone{TEMPORARY}"  # ending of a checkpoint that is being deleted
DAMAGED = ".damaged"  # ending of a damaged checkpoint that was set aside
OTHER = ".other"  # ending of a file of another run, or one that a user edited, which was set aside
