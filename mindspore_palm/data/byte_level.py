"""Byte-level BPE from a tokenizer.json of Hugging Face's library ``tokenizers``, if it is lossless.

Such a vocabulary has a character for each of the 256 bytes (GPT-2, "Language models are unsupervised multitask
learners", section 2.2), so any text is its tokens' bytes, one after another. Whatever may change, drop or add text is
refused by the file itself, not by sample texts. The tokens that control a model are never read from text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mindspore_palm.data.train_tokenizer import EOD
from mindspore_palm.errors import UserError
from mindspore_palm.file_names import TOKENIZER_JSON

ENDS = (EOD, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
"""Names of the token that ends a document, the likeliest first."""
KEEPING = ("Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext")  # ways to split that drop no text


def is_tokenizer_json(content: bytes) -> bool:
    """Whether a tokenizer's file is JSON; a SentencePiece model never starts with a brace."""
    return content[:1] == b"{"


class ByteLevelModel:
    """A lossless byte-level BPE vocabulary.

    Args:
        content: of a tokenizer.json.
        name: of the file, for messages.

    Attributes:
        vocab_size: number of tokens.
        eod: the token that ends a document.
        token_bytes: the bytes that each token stands for; empty for control tokens.

    Raises:
        UserError: this is no tokenizer.json, it may lose text, it has no token that ends a document, or the library
            ``tokenizers`` is not installed.
    """

    def __init__(self, content: bytes, name: str) -> None:
        try:
            described = json.loads(content)
            problems = losses(described)
            special = {token["content"] for token in described.get("added_tokens") or () if token["special"]}
            texts = {token["content"] for token in described.get("added_tokens") or () if not token["special"]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{name}: this is not a {TOKENIZER_JSON} of Hugging Face's tokenizers") from None
        if problems:
            raise UserError(
                f"{name}: the tokenizer loses text: {'; '.join(problems)}. Use a byte-level BPE without normalizer"
            )
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                f"{name}: reading a {TOKENIZER_JSON} needs the library tokenizers; pip install 'tokenizers>=0.21'"
            ) from None
        try:
            self._model = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{name}: this is not a {TOKENIZER_JSON} that tokenizers reads ({error})") from None
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        tokens = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(tokens.values())
        self.token_bytes = [b""] * self.vocab_size
        for text, token in tokens.items():
            if text not in special:
                self.token_bytes[token] = text.encode() if text in texts else bytes(BYTE_OF[c] for c in text)
        ends = [token for token in ENDS if token in special]
        if not ends:
            raise UserError(f"{name}: the tokenizer has no special token {', '.join(ENDS)} that ends a document")
        self.eod: int = tokens[ends[0]]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of each text, int32 [tokens], computed on all cores."""
        return [
            np.array(encoding.ids, np.int32) for encoding in self._model.encode_batch(texts, add_special_tokens=False)
        ]


def losses(described: dict[str, Any]) -> list[str]:
    """Reasons why a tokenizer.json may not be lossless, as phrases; empty if it is.

    Args:
        described: its content.

    Raises:
        KeyError, TypeError, AttributeError: this is not the content of a tokenizer.json.
    """
    model, problems = described["model"], []
    if model.get("type", "BPE") != "BPE":
        return [f"its model is {model['type']}, and only byte-level BPE is known to keep all text"]
    if described.get("normalizer") and described["normalizer"].get("normalizers") != []:
        problems.append(f"its normalizer {_names(described['normalizer'], 'normalizers')} changes characters")
    steps = _steps(described.get("pre_tokenizer"), "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel":
        problems.append("it does not work on bytes (its last pre_tokenizer is not ByteLevel)")
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("add_prefix_space", True):
            problems.append("it puts a space before the text (add_prefix_space)")
        elif step["type"] == "Split" and step["behavior"] not in KEEPING:
            problems.append(f"it drops what it splits at (Split with behavior {step['behavior']})")
        elif step["type"] not in ("ByteLevel", "Split", "Digits"):
            problems.append(f"its pre_tokenizer {step['type']} is not known to keep all text")
    if model.get("dropout"):
        problems.append(f"it drops merges at random (dropout {model['dropout']})")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        problems.append("it marks parts of words (continuing_subword_prefix, end_of_word_suffix)")
    added = described.get("added_tokens") or []
    if any(not token["special"] and (token["lstrip"] or token["rstrip"]) for token in added):
        problems.append("it has added tokens that take the white space around them (lstrip, rstrip)")
    names = {token["content"] for token in added}
    if missing := sum(character not in model["vocab"] for character in BYTE_OF):
        problems.append(f"it has {256 - missing} of the 256 bytes")
    if any(set(text) - BYTE_OF.keys() for text in model["vocab"].keys() - names):
        problems.append("it has tokens that are not written as bytes")
    return problems


def _steps(described: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    if not described:
        return []
    return (
        [step for one in described[members] for step in _steps(one, members)] if members in described else [described]
    )


def _names(described: dict[str, Any], members: str) -> str:
    return " and ".join(str(step["type"]) for step in _steps(described, members))


def _byte_of() -> dict[str, int]:
    """GPT-2's character for each byte: itself if it is printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_of()
