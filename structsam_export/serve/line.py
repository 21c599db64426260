"""Work for threads: so many at once, so many waiting, and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

from structsam_export.serve.refusals import Gone, Refused, busy

T = TypeVar("T")
TYPICAL = 0.2  # seconds, until some work has been timed
WEIGHT = 0.1  # of the latest work in the running mean


@dataclass(frozen=True)
class Job:
    """What a piece of work knows of itself: when it was asked for, and whether anybody still waits for it."""

    asked: float = field(default_factory=time.perf_counter)
    stopped: Event = field(default_factory=Event)

    def check(self) -> None:
        """End work that nobody waits for; long work calls it now and then.

        Raises:
            Gone: the client left, or its time is over.
        """
        if self.stopped.is_set():
            raise Gone


class Line:
    """Threads with a line before them.

    Args:
        name: of the threads.
        workers: how many.
        waiting: requests that may stand in the line.
        timeout: seconds from joining the line to the end of the work.
    """

    def __init__(self, name: str, workers: int, waiting: int, timeout: float) -> None:
        self.workers, self.waiting, self.timeout = workers, waiting, timeout
        self.inside = self.refused = self.late = 0
        self.mean = TYPICAL
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def run(self, work: Callable[[Job], T], gone: Callable[[], Awaitable[None]]) -> T:
        """Do some work in a thread; it is stopped when `gone()` ends first.

        Raises:
            Refused: the line is full (429), or the work took too long (503).
            Gone: the client left.
            Exception: whatever the work raises.
        """
        if self.inside >= self.workers + self.waiting:
            self.refused += 1
            raise busy(self.mean * self.inside / self.workers, "All threads are busy, and the line is full.")
        self.inside += 1
        loop, job = asyncio.get_running_loop(), Job()
        future = self._threads.submit(self._timed, work, job)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await self._ended(future, job, gone)

    async def _ended(self, future: Future[T], job: Job, gone: Callable[[], Awaitable[None]]) -> T:
        result = asyncio.wrap_future(future)
        leaving = asyncio.ensure_future(gone())
        try:
            await asyncio.wait((result, leaving), timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            job.stopped.set()
            left = leaving.done()
            result.cancel()  # if it has not begun; what runs ends by itself, and keeps its place until then
            if left:
                raise Gone
            self.late += 1
            raise Refused(503, f"This took longer than {self.timeout:g} s. Ask for less, or come later.")
        finally:
            leaving.cancel()

    def _timed(self, work: Callable[[Job], T], job: Job) -> T:
        job.check()
        began = time.perf_counter()
        try:
            return work(job)
        finally:
            self.mean += WEIGHT * (time.perf_counter() - began - self.mean)

    def _leave(self) -> None:
        self.inside -= 1

    def close(self) -> None:
        """End the threads; what waits is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)
