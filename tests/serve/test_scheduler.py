"""The scheduler and its thread: who enters next, who is told what, and that one job's failure is its own."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from mindspore_palm import Sampling
from mindspore_palm.generate.places import Places
from mindspore_palm.serve.engine import BROKEN, STOPPING, Engine
from mindspore_palm.serve.scheduler import Failed, Job, Progress, Scheduler

CHUNK = 4
SIZE = 320


class Echo:
    """A decoder whose likeliest next token is one more than the last; -1 stands for logits that are not finite."""

    def __init__(self, sequences):
        self.sequences, self.chunk, self.broken, self.raises = sequences, CHUNK, set(), None

    def write(self, tokens, positions, wanted):
        if self.raises:
            raise self.raises
        return np.stack([self._logits(token) for token in tokens]), np.zeros(self.sequences, np.float32)

    def read_chunk(self, number, tokens, start):
        return self._logits(tokens[start : start + CHUNK][-1]), 0.0

    def _logits(self, token):
        logits = np.full(SIZE, -9.0, np.float32)
        logits[int(token) + 1 if token < SIZE - 1 else 10] = 0.0  # never [eod]
        return logits * np.nan if token in self.broken else logits


class Case:
    """A scheduler on an Echo, with jobs whose events are kept."""

    def __init__(self, generator, count):
        self.decoder, self.generator = Echo(count), generator
        self.scheduler = Scheduler(Places(self.decoder, 100, 0))

    def job(self, *prompts, length=3):
        events = []
        sampling = Sampling(max_tokens=length)
        read = [self.generator.read_prompt(list(prompt)) for prompt in prompts]
        job = Job([self.generator.begin(prompt, sampling) for prompt in read], events.append)
        job.events = events
        return job

    def add(self, *prompts, **more):
        job = self.job(*prompts, **more)
        self.scheduler.add(job)
        return job

    def steps(self, count):
        for _ in range(count):
            self.scheduler.step()


@pytest.fixture
def case(generator):
    return lambda count: Case(generator, count)


def tokens(job, index=0):
    return [token.number for event in job.events if event.index == index for token in event.tokens]


def finished(job):
    return [event.index for event in job.events if isinstance(event, Progress) and event.finished]


def test_sequences_enter_in_the_order_in_which_they_came(case):
    one = case(2)
    first, second, third = one.add([10], [20]), one.add([30]), one.add([40])
    one.steps(1)
    assert (one.scheduler.running, one.scheduler.waiting) == (2, 2)
    one.steps(3)
    assert tokens(first) == [11, 12, 13] and not third.events
    one.steps(6)
    assert [finished(job) for job in (first, second, third)] == [[0, 1], [0], [0]]
    assert tokens(first, 1) == [21, 22, 23] and tokens(second) == [31, 32, 33] and tokens(third) == [41, 42, 43]
    assert (one.scheduler.running, one.scheduler.waiting, one.scheduler.done) == (0, 0, 4)


def test_a_free_place_is_taken_in_the_next_step(case):
    """The second sequence ends first; the third does not wait for the first one."""
    one = case(2)
    one.add([10], length=50)
    one.add([20], length=1)
    third = one.add([30])
    one.steps(2)
    assert one.scheduler.done == 1 and not third.events
    one.steps(1)
    assert tokens(third) == [31] and one.scheduler.running == 2


def test_a_cancelled_job_frees_its_places_and_is_told_nothing(case):
    one = case(1)
    gone, waits, stays = one.add([10], length=50), one.add([20]), one.add([30])
    one.steps(2)
    gone.cancelled = waits.cancelled = True
    told = len(gone.events)
    one.steps(3)
    assert len(gone.events) == told and not waits.events and tokens(stays) == [31, 32, 33]
    assert one.scheduler.done == 3


def test_logits_that_are_not_finite_fail_their_job_alone(case):
    one = case(3)
    one.decoder.broken.add(21)
    bad, good = one.add([20], [40], [50]), one.add([30])
    one.steps(9)
    assert isinstance(bad.events[-1], Failed) and bad.events[-1].status == 500
    assert "not finite" in bad.events[-1].message and sum(isinstance(event, Failed) for event in bad.events) == 1
    assert tokens(good) == [31, 32, 33]
    assert (one.scheduler.running, one.scheduler.waiting, one.scheduler.done) == (0, 0, 4)


def test_a_stop_fails_what_waits_and_finishes_what_runs(case):
    one = case(1)
    engine = Engine(one.scheduler, 3)
    running, waiting = one.job([10], length=20), one.job([20])
    threads = [threading.Thread(target=engine.run)]
    threads[0].start()
    assert engine.submit(running) and engine.submit(waiting)
    engine.stop(60)
    threads[0].join(30)
    assert not threads[0].is_alive() and engine.stopping
    assert waiting.events == [STOPPING]
    assert running.events == [STOPPING] or tokens(running) == list(range(11, 31))  # it may not have begun


def test_a_stop_without_time_ends_everything(case):
    one = case(1)
    engine = Engine(one.scheduler, 3)
    job = one.job([10], length=10_000_000)
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert engine.submit(job)
    while not job.events:
        time.sleep(0.01)
    engine.stop(0)
    thread.join(30)
    assert not thread.is_alive() and job.events[-1] == STOPPING


def test_only_as_many_are_taken_as_fit(case):
    one = case(1)
    engine = Engine(one.scheduler, 3)
    assert engine.submit(one.job([10], [20])) and not engine.submit(one.job([30], [40]))
    assert engine.submit(one.job([30])) and not engine.submit(one.job([40])) and engine.outstanding == 3


def test_an_error_in_decoding_is_told_to_all_and_raised(case):
    one = case(1)
    engine = Engine(one.scheduler, 3)
    first, second = one.job([10], length=9), one.job([20])
    assert engine.submit(first) and engine.submit(second)
    one.decoder.raises = RuntimeError("the device is gone")
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.run()
    assert first.events[-1] == BROKEN and second.events == [BROKEN]
