"""Requests in the places of a decoder: which one enters next, and what each is told after a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mindspore_palm.errors import UserError
from mindspore_palm.generate.places import Places
from mindspore_palm.generate.sequence import Finished, GrowingSequence

CHUNKS = 1  # of new prompts that are read between two tokens of the others


@dataclass(frozen=True)
class Token:
    """A generated token."""

    number: int
    log_prob: float
    alternatives: tuple[tuple[int, float], ...]
    """The likeliest tokens at its position, if the request asked for them."""
    repeated: int
    """Bytes at its beginning that repeat white space from the end of the prompt."""


@dataclass(frozen=True)
class Progress:
    """New text of one sequence of a request."""

    index: int
    """Of the sequence in its request."""
    text: str
    tokens: tuple[Token, ...]
    finished: Finished


@dataclass(frozen=True)
class Failed:
    """The end of a request that is not answered."""

    status: int
    message: str


@dataclass(eq=False)
class Job:
    """A request while it is answered.

    Args:
        sequences: to generate.
        deliver: takes each event, in the thread that decodes.
    """

    sequences: Sequence[GrowingSequence]
    deliver: Callable[[Progress | Failed], None]
    cancelled: bool = False
    """Whether nobody waits for it any more. Any thread may set it."""


@dataclass(eq=False)
class _Entry:
    """A sequence of a job, and how much of it was delivered."""

    job: Job
    index: int
    delivered: int = 0

    @property
    def sequence(self) -> GrowingSequence:
        return self.job.sequences[self.index]


@dataclass
class Scheduler:
    """Gives waiting sequences places in the order in which they came. Only one thread calls it.

    Args:
        places: of the decoder.
    """

    places: Places
    done: int = 0
    """Sequences that ended so far, for whatever reason. Other threads may read it."""
    _waiting: deque[_Entry] = field(default_factory=deque)
    _running: dict[GrowingSequence, _Entry] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Sequences without a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences in places."""
        return len(self._running)

    def add(self, job: Job) -> None:
        """Queues the sequences of a job."""
        self._waiting.extend(_Entry(job, index) for index in range(len(job.sequences)))

    def step(self) -> None:
        """Drops what was cancelled, fills free places, and decodes one token of every sequence in a place."""
        self._drop(lambda entry: entry.job.cancelled)
        while self._waiting and self.places.free:
            entry = self._waiting.popleft()
            self.places.enter(entry.sequence)
            self._running[entry.sequence] = entry
        for sequence, logits, log_z in self.places.step(CHUNKS):
            if sequence not in self._running:
                continue  # another sequence of its job has failed in this step
            entry = self._running[sequence]
            try:
                sequence.append_token(logits, log_z)
            except UserError as error:
                self._fail(entry.job, Failed(500, str(error)))
                continue
            self._deliver(entry)
            if sequence.finished:
                self._end(entry)

    def fail_waiting(self, failed: Failed) -> None:
        """Ends the jobs that have a sequence without a place."""
        for job in {entry.job: None for entry in self._waiting}:
            self._fail(job, failed)

    def fail_all(self, failed: Failed) -> None:
        """Ends all jobs."""
        for job in {entry.job: None for entry in (*self._waiting, *self._running.values())}:
            self._fail(job, failed)

    def _deliver(self, entry: _Entry) -> None:
        sequence, text = entry.sequence, entry.sequence.piece()
        if not text and not sequence.finished:
            return
        tokens = tuple(
            Token(
                sequence.token_ids[i],
                sequence.log_probs[i],
                tuple(sequence.alternatives[i]) if sequence.alternatives else (),
                sequence.repeated if i == 0 else 0,
            )
            for i in range(entry.delivered, len(sequence.token_ids))
        )
        entry.delivered = len(sequence.token_ids)
        entry.job.deliver(Progress(entry.index, text, tokens, sequence.finished))

    def _fail(self, job: Job, failed: Failed) -> None:
        if self._drop(lambda entry: entry.job is job):
            job.deliver(failed)

    def _drop(self, condition: Callable[[_Entry], bool]) -> int:
        """Ends all entries that meet a condition; returns how many did."""
        before = self.done
        kept = [entry for entry in self._waiting if not condition(entry)]
        self.done += len(self._waiting) - len(kept)
        self._waiting = deque(kept)
        for entry in [entry for entry in self._running.values() if condition(entry)]:
            self._end(entry)
        return self.done - before

    def _end(self, entry: _Entry) -> None:
        del self._running[entry.sequence]
        self.places.leave(entry.sequence)
        self.done += 1
