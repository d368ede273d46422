"""The NVIDIA GPUs that the driver shows, without torch: torch sees none where it was built without CUDA."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API


@dataclass(frozen=True)
class Gpu:
    """A device. capability: its compute capability, such as (8, 9)."""

    name: str
    capability: tuple[int, int]

    @property
    def target(self) -> str:
        """`sm89`."""
        return f"sm{self.capability[0]}{self.capability[1]}"


def gpus() -> tuple[Gpu, ...]:
    """Every device that the driver shows; none where there is no driver, or one that does not start."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = (_gpu(driver, i) for i in range(count.value))
    return tuple(g for g in found if g is not None)


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    calls = (
        driver.cuDeviceGet(ctypes.byref(device), index),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    return None if any(calls) else Gpu(name.value.decode(errors="replace"), (major.value, minor.value))
