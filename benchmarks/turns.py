"""Contenders in separate processes, which take turns: a machine that slows down slows all of them."""

from __future__ import annotations

import multiprocessing
import time

WARM_UP = 4


def serve(make, arguments, warm_up, pipe):
    """The process of a contender: for each number n in the pipe, runs n steps and sends back their seconds."""
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
    """A process in which ``make(*arguments)`` returns a step; ``steps`` runs it, once ``wait`` has returned."""

    def __init__(self, make, *arguments, warm_up=WARM_UP):
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=serve, args=(make, arguments, warm_up, child_pipe))
        self.process.start()
        child_pipe.close()

    def wait(self):
        """Waits until the process has compiled and warmed up. Several can do so at once."""
        self.pipe.recv()
        return self

    def steps(self, count):
        """Seconds of each of ``count`` steps."""
        self.pipe.send(count)
        return self.pipe.recv()

    def close(self):
        self.pipe.send(None)
        self.process.join()


def in_new_process(function, *arguments):
    """The result of a function that runs in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
