"""The places of a decoder: each holds a sequence of its own, and a new one enters as soon as a place is free.

This is continuous batching (Orca, OSDI 2022): sequences start and end at different steps, and a step never waits for
the longest of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindspore_palm.generate.decoder import Decoder
from mindspore_palm.generate.sequence import GrowingSequence


@dataclass
class _Place:
    sequence: GrowingSequence
    read: int = 0
    """Tokens of its window that are in the cache, while the window is read in chunks."""
    reading: bool = True
    """Whether the window is still being read; else only its last token is new."""


class Places:
    """The B places of a decoder.

    On CPU, a sequence gets the same bits alone and beside any others: a window is read without the others, and
    ``Decoder.write`` computes each row in an order that does not depend on the other rows.

    Args:
        decoder: the decoder; nobody else may use it meanwhile.
        context: maximum number of tokens that the network sees. A longer window slides.
        idle: the token that a free place writes, which nobody sees.
    """

    def __init__(self, decoder: Decoder, context: int, idle: int) -> None:
        self._decoder, self._context, self._idle = decoder, context, idle
        self._places: list[_Place | None] = [None] * decoder.sequences

    @property
    def free(self) -> int:
        """Number of free places."""
        return self._places.count(None)

    @property
    def sequences(self) -> list[GrowingSequence]:
        """The sequences, in the order of their places."""
        return [place.sequence for place in self._places if place is not None]

    def enter(self, sequence: GrowingSequence) -> None:
        """Gives a sequence a free place.

        Raises:
            ValueError: none is free.
        """
        self._places[self._places.index(None)] = _Place(sequence)

    def leave(self, sequence: GrowingSequence) -> None:
        """Frees the place of a sequence."""
        for number, place in enumerate(self._places):
            if place is not None and place.sequence is sequence:
                self._places[number] = None

    def step(self, chunks: int | None = None) -> list[tuple[GrowingSequence, np.ndarray, float]]:
        """Reads windows that are new, and writes the last token of the others.

        Args:
            chunks: chunks of new windows to read in this step, so that a long prompt does not hold up the others; None
                reads all of them to their ends.

        Returns:
            Each sequence whose next token can be sampled, with its logits float32 [vocab_size] and log(Z).
        """
        for place in self._places:
            if place is not None and not place.reading and place.sequence.slide(self._context):
                place.reading, place.read = True, 0
        ready = self._write()
        return ready + (self._read_all() if chunks is None else self._read(chunks))

    def _write(self) -> list[tuple[GrowingSequence, np.ndarray, float]]:
        wanted = [place is not None and not place.reading for place in self._places]
        if not any(wanted):
            return []
        tokens, positions = np.full(len(wanted), self._idle), np.zeros(len(wanted), np.int64)
        for number, place in enumerate(self._places):
            if place is not None and place.reading:  # the slot after what it has read, which its next chunk overwrites
                positions[number] = place.read
            elif place is not None:
                window = place.sequence.window
                tokens[number], positions[number] = window[-1], len(window) - 1
        logits, log_z = self._decoder.write(tokens, positions, wanted)
        return self._ready(logits, log_z, wanted)

    def _read_all(self) -> list[tuple[GrowingSequence, np.ndarray, float]]:
        reading = [place is not None and place.reading for place in self._places]
        if not any(reading):
            return []
        windows = [place.sequence.window if place and place.reading else None for place in self._places]
        logits, log_z = self._decoder.read(windows)
        return self._ready(logits, log_z, reading)

    def _read(self, chunks: int) -> list[tuple[GrowingSequence, np.ndarray, float]]:
        """Chunks of the windows that have the fewest left to read: short prompts do not wait for long ones."""
        ready = []
        reading = [(number, place) for number, place in enumerate(self._places) if place is not None and place.reading]
        for number, place in sorted(reading, key=lambda item: len(item[1].sequence.window) - item[1].read):
            window = place.sequence.window
            while chunks > 0 and place.reading:
                logits, log_z = self._decoder.read_chunk(number, window, place.read)
                place.read, chunks = min(len(window), place.read + self._decoder.chunk), chunks - 1
                if place.read == len(window):
                    place.reading = False
                    ready.append((place.sequence, logits, log_z))
        return ready

    def _ready(
        self, logits: np.ndarray, log_z: np.ndarray, wanted: list[bool]
    ) -> list[tuple[GrowingSequence, np.ndarray, float]]:
        ready = []
        for place, is_wanted, row, z in zip(self._places, wanted, logits, log_z, strict=False):
            if place is not None and is_wanted:
                place.reading = False
                ready.append((place.sequence, row, float(z)))
        return ready
