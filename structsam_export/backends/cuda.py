"""The GPU of this machine, asked through the CUDA driver, so that no library has to be imported for it."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@lru_cache(maxsize=1)
def _device() -> tuple[str, str] | None:
    """(name, SM) of the first CUDA device; None without a driver or a device."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, len(name), device):
        return None
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        capability.append(value.value)
    return name.value.decode(errors="replace"), "sm{}{}".format(*capability)


def has_gpu() -> bool:
    """Whether a CUDA device can be used."""
    return _device() is not None


def current_sm() -> str:
    """SM of the GPU in use, e.g. "sm90"; empty without one."""
    found = _device()
    return found[1] if found else ""


def gpu_name() -> str | None:
    """Name of the GPU in use."""
    found = _device()
    return found[0] if found else None
