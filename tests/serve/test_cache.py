"""The cache: bounded, made once, and a failure is everybody's who waited for it, and nobody's after."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from structsam_export.serve.cache import Cache


def test_the_least_recently_used_go_first():
    cache = Cache(30, len)
    for key in "abc":
        cache.put(key, key * 10)
    assert cache.get("a") == "a" * 10
    cache.put("d", "d" * 10)
    assert cache.get("b") is None and cache.get("a") and cache.bytes == 30
    cache.put("a", "a" * 5)
    assert cache.bytes == 25
    cache.put("e", "e" * 31)
    assert cache.get("e") is None and len(cache) == 3


def test_what_many_ask_for_is_made_once():
    cache, release, made = Cache(100, len), threading.Event(), []

    def make():
        made.append(1)
        release.wait(10)
        return "value"

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(cache.made, "key", make) for _ in range(8)]
        release.set()
    assert {one.result()[0] for one in asked} == {"value"}
    assert len(made) == 1


def test_a_failure_is_not_kept():
    cache = Cache(100, len)
    with pytest.raises(ZeroDivisionError):
        cache.made("key", lambda: 1 // 0)
    assert cache.made("key", lambda: "value") == ("value", False)
    assert cache.made("key", lambda: "other") == ("value", True)
