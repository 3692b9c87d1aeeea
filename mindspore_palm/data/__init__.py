"""Text to batches: a lossless tokenizer, a corpus prepared once, and the one function (seed, step) -> batch."""

from mindspore_palm.data.batches import Batches, validation_batches
from mindspore_palm.data.pairs import read_pairs
from mindspore_palm.data.prepare import Prepared, prepare
from mindspore_palm.data.prepare_mixture import prepare_text
from mindspore_palm.data.tokenizer import Tokenizer
from mindspore_palm.data.tokens import TokenFile

__all__ = [
    "Batches",
    "Prepared",
    "TokenFile",
    "Tokenizer",
    "prepare",
    "prepare_text",
    "read_pairs",
    "validation_batches",
]
