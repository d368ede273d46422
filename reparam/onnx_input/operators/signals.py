"""Transforms of signals, and their windows. A complex value is a last axis of two: its real and its imaginary part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reparam.onnx_input.call import Call

FLOAT = 1  # ONNX's number for float32


def _complex(call: Call, index: int = 0) -> Tensor:
    """An input as torch's complex numbers, or as real ones where its last axis has a single number."""
    x = call.tensor(index)
    if x.shape[-1] not in (1, 2):
        raise call.node.refused("the last axis of its input is neither one real number nor a pair")
    return x.select(-1, 0) if x.shape[-1] == 1 else torch.complex(x.select(-1, 0), x.select(-1, 1))


def _fourier(call: Call) -> Tensor:
    """The discrete Fourier transform along one axis, or its inverse, of all frequencies or of a half of them."""
    x = _complex(call)
    if call.node.version < 20:
        axis = call.attribute("axis", 1)
    else:
        axis = call.number(2, "axis") if call.given(2) else -2
    axis = call.axis(axis, x.dim() + 1)
    if axis == x.dim():
        raise call.node.refused("it is about the axis of the real and the imaginary part")
    length = call.number(1, "length") if call.given(1) else None
    inverse, half = bool(call.attribute("inverse", 0)), bool(call.attribute("onesided", 0))
    if not half:
        whole = torch.fft.ifft if inverse else torch.fft.fft
        return torch.view_as_real(whole(x, length, axis))
    if inverse:
        values: Tensor = torch.fft.irfft(x, length, axis)
        return values.unsqueeze(-1)
    if x.is_complex():
        raise call.node.refused("its input is complex, so that half of the frequencies do not tell the others")
    return torch.view_as_real(torch.fft.rfft(x, length, axis))


def _short_time(call: Call) -> Tensor:
    """(N, L, 1 or 2) to the transform of each frame, (N, frames, frequencies, 2)."""
    x, step, window = _complex(call), call.number(1, "step"), call.optional(2)
    length = x.shape[-1] if window is None else window.shape[0]
    length = call.number(3, "length") if call.given(3) else length
    half = bool(call.attribute("onesided", 1))
    window = torch.ones(length, dtype=call.tensor(0).dtype) if window is None else window
    found = torch.stft(x, length, step, length, window, center=False, onesided=half, return_complex=True)
    return torch.view_as_real(found).transpose(1, 2)


def _window(*terms: float) -> Callable[[Call], Tensor]:
    """The sum of terms[k] * cos(2 pi k n / N), N being the size of a periodic one, and one less of a symmetric one."""

    def compute(call: Call) -> Tensor:
        size: Any = call.number(0, "size")
        dtype = call.dtype("output_datatype", FLOAT)
        at = torch.arange(size, dtype=torch.float64)
        turn = 2.0 * math.pi * at / (size if call.attribute("periodic", 1) else size - 1)
        found = sum(term * torch.cos(k * turn) for k, term in enumerate(terms))
        assert isinstance(found, Tensor)
        return found.to(dtype)

    return compute


OPERATORS = {
    "DFT": _fourier,
    "STFT": _short_time,
    "HannWindow": _window(0.5, -0.5),
    "HammingWindow": _window(25.0 / 46.0, -21.0 / 46.0),
    "BlackmanWindow": _window(0.42, -0.5, 0.08),
}
