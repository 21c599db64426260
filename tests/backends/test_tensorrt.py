"""What TensorRT is asked for; the full library is not installed here, and running needs a GPU."""

from __future__ import annotations

import pytest

from structsam_export.backends import backend, tensorrt
from structsam_export.errors import UsageError


@pytest.fixture(autouse=True)
def polygraphy_is_rtxs():
    """A test process uses one of both, and this is the one that is installed."""
    tensorrt.use_tensorrt(rtx=True)


def test_timings_are_shared_by_all_builds_on_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("STRUCTSAM_CACHE", str(tmp_path / "cache"))
    own = backend("tensorrt")
    cache = tmp_path / "cache" / "timing-sm90.cache"
    config, options, more = own.builder_config("current", "sm90", None, None)
    assert config.timing_cache_path is None and more == {"save_timing_cache": str(cache)}
    assert options == {"strongly_typed": True, "timing_cache": "timing-sm90.cache"}
    cache.write_bytes(b"timings")
    assert own.builder_config("current", "sm90", None, None)[0].timing_cache_path == str(cache)
    assert tensorrt.timing_cache("sm86") != cache


def test_rtx_is_asked_for_the_chosen_gpu(monkeypatch):
    own = backend("tensorrt-rtx")
    config, options, more = own.builder_config("sm120", "sm120", None, None)
    assert (options, more) == ({"strongly_typed": True, "target": "sm120"}, {})
    assert config.compute_capabilities == [(12, 0)]
    assert own.builder_config("sm86", "sm86", None, None)[0].compute_capabilities == [(8, 6)]
    monkeypatch.setattr("structsam_export.backends.cuda._device", lambda: None)
    assert own.targets("auto") == ("sm86", "sm89") and own.targets("SM89, sm120") == ("sm89", "sm120")


def test_one_process_uses_one_of_both(monkeypatch):
    from polygraphy import config

    monkeypatch.setitem(tensorrt.sys.modules, "polygraphy.backend.trt", object())
    monkeypatch.setattr(config, "USE_TENSORRT_RTX", True)
    with pytest.raises(UsageError, match="Start a new one for 'tensorrt'"):
        tensorrt.use_tensorrt(rtx=False)
    tensorrt.use_tensorrt(rtx=True)
