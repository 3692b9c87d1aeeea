"""The thread that decodes: requests come to it from other threads, and every call of MindSpore is made in it."""

from __future__ import annotations

import queue
import time

from mindspore_palm.serve.scheduler import Failed, Job, Scheduler

POLL = 0.2  # seconds; a signal that reaches another thread does not wake one that waits for a message
STOPPING = Failed(503, "the server is stopping; send the request again when it is back")
BROKEN = Failed(500, "the server has failed; its own output says why")


class Engine:
    """Runs a scheduler in one thread. All other methods may be called from any thread.

    Args:
        scheduler: the scheduler; the thread that calls ``run`` owns it.
        capacity: sequences that may have a place or wait for one.
    """

    def __init__(self, scheduler: Scheduler, capacity: int) -> None:
        self._scheduler, self.capacity = scheduler, capacity
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: look at the flags
        self._submitted = 0
        self._deadline: float | None = None

    @property
    def outstanding(self) -> int:
        """Sequences that have a place or wait for one."""
        return self._submitted - self._scheduler.done

    @property
    def running(self) -> int:
        """Sequences that have a place."""
        return self._scheduler.running

    @property
    def stopping(self) -> bool:
        """Whether it takes no more requests."""
        return self._deadline is not None

    def submit(self, job: Job) -> bool:
        """Takes a job if there is room for all of its sequences; returns whether it did. Only one thread may call it.

        If it is stopping, the job is told so.
        """
        if self.outstanding + len(job.sequences) > self.capacity:
            return False
        self._submitted += len(job.sequences)
        self._inbox.put(job)
        return True

    def cancel(self, job: Job) -> None:
        """Frees the places of a job before its next token. It is told nothing any more."""
        job.cancelled = True
        self._inbox.put(None)

    def stop(self, seconds: float) -> None:
        """Ends ``run`` when what has a place is finished, after so many seconds at the latest; what waits fails.

        A signal handler may call it, also a second time.
        """
        self._deadline = time.monotonic() + seconds
        self._inbox.put(None)

    def run(self) -> None:
        """Decodes until it is stopped.

        Raises:
            BaseException: whatever decoding raises; all jobs were told that they failed.
        """
        try:
            while True:
                idle = not self._scheduler.running and not self._scheduler.waiting
                self._receive(wait=idle and self._deadline is None)
                if self._deadline is not None:
                    self._scheduler.fail_waiting(STOPPING)
                    if time.monotonic() >= self._deadline:
                        self._scheduler.fail_all(STOPPING)
                    if not self._scheduler.running:
                        return
                self._scheduler.step()
        except BaseException:
            self.stop(0)
            self._receive(wait=False)
            self._scheduler.fail_all(BROKEN)
            raise

    def _receive(self, wait: bool) -> None:
        """Takes all jobs that have come, and waits for a moment first if told to."""
        while True:
            try:
                job = self._inbox.get(block=wait, timeout=POLL)
            except queue.Empty:
                return
            wait = False
            if job is not None:
                self._scheduler.add(job)
