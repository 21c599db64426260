"""What is kept between requests: bounded by its size, and made once however many ask for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Values by key, those least recently used dropped when together they are larger than `most` bytes.

    A value that is larger than that by itself is handed out and not kept. Threads may share it.
    """

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self.most = most
        self.bytes = self.hits = self.misses = 0
        self._size = size
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._making: dict[Hashable, Future[V]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> V | None:
        """A value that is kept."""
        with self._lock:
            return self._get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value; others make room."""
        with self._lock:
            self._put(key, value)

    def made(self, key: Hashable, make: Callable[[], V]) -> tuple[V, bool]:
        """A value, made where it is not kept, and whether it was there.

        Threads that ask while another one makes it wait for that one; if making fails, all of them fail alike.
        """
        with self._lock:
            found = self._get(key)
            if found is not None:
                self.hits += 1
                return found, True
            self.misses += 1
            waiting = self._making.get(key)
            own = self._making[key] = waiting if waiting is not None else Future()
        if waiting is not None:
            return waiting.result(), True
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            own.set_exception(error)
            raise
        with self._lock:
            self._put(key, value)
            del self._making[key]
        own.set_result(value)
        return value, False

    def _get(self, key: Hashable) -> V | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def _put(self, key: Hashable, value: V) -> None:
        if key in self._kept:
            self.bytes -= self._size(self._kept.pop(key))
        if self._size(value) > self.most:
            return
        self._kept[key] = value
        self.bytes += self._size(value)
        while self.bytes > self.most:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= self._size(dropped)
