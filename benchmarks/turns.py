"""Contenders in processes of their own, which take turns: a machine that slows down slows all of them."""

from __future__ import annotations

import multiprocessing
import time

WARM_UP = 4


def serve(make, arguments, warm_up, pipe):
    """A contender's process: every number n that arrives is answered by the seconds of n steps."""
    step = make(*arguments)
    for _ in range(warm_up):
        step()
    pipe.send("ready")
    while (count := pipe.recv()) is not None:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        pipe.send(seconds)


class Contender:
    """``make(*arguments)`` gives, in a process of its own, a step that is run when it is its turn."""

    def __init__(self, make, *arguments, warm_up=WARM_UP):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(make, arguments, warm_up, theirs))
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def steps(self, count):
        self.pipe.send(count)
        return self.pipe.recv()

    def close(self):
        self.pipe.send(None)
        self.process.join()


def alone(function, *arguments):
    """What a function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
