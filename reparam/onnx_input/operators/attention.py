"""Attention, and the rotations of queries and keys by their positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.onnx_input.call import Call

_SCORES = 3  # the result that holds what the softmax is taken of


def _attention(call: Call) -> tuple[Tensor, ...]:
    """softmax(Q K^T scale + mask) V, of (N, heads, length, size) or (N, length, heads * size); keys and values behind
    those of the past. Some heads may share keys and values.
    """
    if call.is_read(_SCORES):
        raise call.node.refused("its scores are read as a result, which is not supported")
    if call.attribute("softcap", 0.0):
        raise call.node.refused("a bound of its scores (softcap) is not supported")
    if call.given(6):
        raise call.node.refused("lengths of the samples (nonpad_kv_seqlen) are not supported")
    if any(call.attribute(n, -1) >= 0 for n in ("left_window_size", "right_window_size")):
        raise call.node.refused("a window of keys for each query is not supported")
    flat = call.tensor(0).dim() == 3
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    q, k, v = (_heads(call.tensor(i), call.required(names[i])) if flat else call.tensor(i) for i in range(3))
    past = call.tensor(4).shape[2] if call.given(4) else 0
    if call.given(4):
        k, v = torch.cat([call.tensor(4), k], 2), torch.cat([call.tensor(5), v], 2)
    present = (k, v)
    if q.shape[1] != k.shape[1]:
        each = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    mask, causal = call.optional(3), bool(call.attribute("is_causal", 0))
    _check_mask(call, mask, k)
    if causal and (mask is not None or call.given(4)):
        mask, causal = _with_causal(mask, q, k, past), False
    scale = call.attribute("scale", None)
    found = F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale)
    result = found.transpose(1, 2).flatten(2) if flat else found
    scores = result  # which nothing reads
    return (result, *present, scores)[: call.node.results]


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(2, (heads, x.shape[2] // heads))
    return split.transpose(1, 2)


def _check_mask(call: Call, mask: Tensor | None, keys: Tensor) -> None:
    if mask is None:
        return
    wide, length = mask.shape[-1], keys.shape[2]
    if isinstance(wide, int) and isinstance(length, int) and wide not in (1, length):
        raise call.node.refused(f"its mask tells of {wide} of {length} keys, which is not supported")


def _with_causal(mask: Tensor | None, q: Tensor, k: Tensor, past: int) -> Tensor:
    """The mask, which also keeps a query from the keys behind its own position."""
    queries = torch.arange(q.shape[2]).unsqueeze(1) + past
    allowed = torch.arange(k.shape[2]) <= queries
    if mask is None:
        return allowed
    if mask.dtype == torch.bool:
        return mask & allowed
    return torch.where(allowed, mask, torch.full((), -torch.inf, dtype=mask.dtype))


def _rotary(call: Call) -> Tensor:
    """Turns pairs (a, b) of a head by an angle: (a cos - b sin, a sin + b cos).

    Of (N, heads, length, size) or (N, length, heads * size). The pairs are neighbours where `interleaved`, else the two
    halves of what is turned; the rest of a head stays.
    """
    x, cos, sin, places = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    flat = x.dim() == 3
    shape = x.shape
    x = _heads(x, call.required("num_heads")) if flat else x
    if places is not None:
        cos, sin = cos[places], sin[places]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # of all heads
    turned = call.attribute("rotary_embedding_dim", 0) or x.shape[-1]
    part, rest = x[..., :turned], x[..., turned:]
    if call.attribute("interleaved", 0):
        a, b = part[..., ::2], part[..., 1::2]
    else:
        a, b = part.chunk(2, -1)
    new = (a * cos - b * sin, a * sin + b * cos)
    made = torch.stack(new, -1).flatten(-2) if call.attribute("interleaved", 0) else torch.cat(new, -1)
    made = torch.cat([made, rest], -1) if turned != x.shape[-1] else made
    return made.transpose(1, 2).reshape(shape) if flat else made


OPERATORS = {"Attention": _attention, "RotaryEmbedding": _rotary}
