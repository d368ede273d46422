"""Sizes that follow from a free one are written in plain words, and stay what they are."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import PropertyMock, patch

import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental import sym_node
from torch.utils._sympy.functions import CeilToInt, FloorDiv, IntTrueDiv, Max, Min, Mod, PythonMod, TruncToInt

from reparam.capture import capture
from reparam.capture.sizes import LONGEST, plain, plain_sizes
from support.helpers import Lambda, healthy, module_rel, program_of

H = sympy.Symbol("h", integer=True, positive=True)
W = sympy.Symbol("w", integer=True, positive=True)
SOME = [*range(1, 70), 511, 512, 513, 10_007]


def _whole(n: int) -> sympy.Integer:
    return sympy.Integer(n)


def _ceiling(x: sympy.Expr, n: int) -> sympy.Expr:
    return CeilToInt(IntTrueDiv(x, _whole(n)))


def _same_pad(x: sympy.Expr, k: int, s: int) -> sympy.Expr:
    """What "same" padding adds to a size, as timm and others compute it."""
    return Max((_ceiling(x, s) - 1) * s + k - x, 0)


def _same(x: sympy.Expr, k: int, s: int) -> sympy.Expr:
    """The size behind a convolution with "same" padding."""
    return FloorDiv(x + _same_pad(x, k, s) - k, _whole(s)) + 1


def _value(size: sympy.Expr, h: int) -> int:
    return int(size.xreplace({H: _whole(h)}).doit())


def _filled(x: sympy.Expr, m: int) -> sympy.Expr:
    """A size that is filled up to whole windows."""
    return x + Mod(m - Mod(x, _whole(m)), _whole(m))


EIGHTH = FloorDiv(H + 7, _whole(8))
PLAIN = {
    "same, odd kernel": (_same(H, 3, 2), FloorDiv(H + 1, _whole(2))),
    "same, three strides": (_same(_same(_same(H, 3, 2), 5, 2), 3, 2), FloorDiv(H + 7, _whole(8))),
    "same, stride of three": (_same(H, 5, 3), FloorDiv(H + 2, _whole(3))),
    "no stride": (_same(H, 7, 1), H),
    "what is added": (_same_pad(H, 3, 2), 1 + Mod(H, _whole(2))),
    "less a remainder": (H - Mod(H, _whole(4)) - H + 3, 3 - Mod(H, _whole(4))),
    "a ceiling": (_ceiling(H, 2), FloorDiv(H + 1, _whole(2))),
    "filled up to eights": (H + PythonMod(-H, _whole(8)), None),
    "filled up to windows": (_filled(H, 7), 7 * FloorDiv(H + 6, _whole(7))),
    "what fills up windows": (_filled(H, 7) - H, None),
    "windows": (FloorDiv(_filled(H, 7), _whole(7)), FloorDiv(H + 6, _whole(7))),
    "windows of a quotient": (_filled(EIGHTH, 7), 7 * FloorDiv(EIGHTH + 6, _whole(7))),
    "how many windows of a quotient": (FloorDiv(_filled(EIGHTH, 7), _whole(7)), FloorDiv(H + 55, _whole(56))),
    "what fills up a quotient": (_filled(EIGHTH, 7) - EIGHTH, None),
    "cut off to a multiple": (H - Mod(H, _whole(32)) + FloorDiv(H, _whole(1)) - H, 32 * FloorDiv(H, _whole(32))),
    "cut off": (TruncToInt(IntTrueDiv(H + 2, _whole(4))), FloorDiv(H + 2, _whole(4))),
    "the smaller": (Min(_ceiling(H, 2), H), FloorDiv(H + 1, _whole(2))),
    "a constant": (FloorDiv(H, _whole(2)) - _ceiling(H - 1, 2), _whole(0)),
    "even and odd": (2 * FloorDiv(H, _whole(2)) + Mod(H, _whole(2)), H),
    "two thirds": (FloorDiv(2 * H, _whole(3)) + FloorDiv(H, _whole(1)) - H, None),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_forms(name: str) -> None:
    size, expected = PLAIN[name]
    found = plain(size)
    assert expected is None or found == expected
    assert [_value(found, h) for h in SOME] == [_value(size, h) for h in SOME]


LEFT = {
    "two free sizes": FloorDiv(H + W, _whole(2)) + _ceiling(W, 2),
    "a maximum that changes": Max(H - 5, _whole(0)),
    "a product": Max(H * H, H) + _ceiling(H, 2),
    "a quotient by a size": FloorDiv(_whole(100), H),
    "many classes": _ceiling(H, LONGEST + 1),
    "nothing rounded": 2 * H + 1,
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_as_it_is(name: str) -> None:
    assert plain(LEFT[name]) is LEFT[name]


def test_sizes_that_may_be_negative_are_left() -> None:
    symbol = sympy.Symbol("u", integer=True)
    size = _same(symbol, 3, 2)
    assert plain(size) is size


def test_as_many_classes_as_are_looked_at() -> None:
    assert plain(_ceiling(H, LONGEST)) == FloorDiv(H + LONGEST - 1, _whole(LONGEST))


STEPS = (
    lambda x, n, c: FloorDiv(x + c, _whole(n)),
    lambda x, n, c: _ceiling(x + c, n),
    lambda x, n, c: PythonMod(x + c, _whole(n)) + x,
    lambda x, n, c: Max(x, x + c),
    lambda x, n, c: Min(2 * x + c, x * n),
    lambda x, n, c: _same(x, n + 1, n),
    lambda x, n, c: x * n - FloorDiv(x, _whole(2)),
    lambda x, n, c: TruncToInt(IntTrueDiv(x + 9, _whole(n))),
)


@st.composite
def _sizes(draw: Any) -> sympy.Expr:
    size: sympy.Expr = H
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from(STEPS))(size, draw(st.integers(1, 4)), draw(st.integers(-3, 5)))
    return size


@given(size=_sizes())
def test_a_plain_form_is_the_same_number(size: sympy.Expr) -> None:
    found = plain(size)
    assert [_value(found, h) for h in SOME] == [_value(size, h) for h in SOME]


# ---- in a network ----------------------------------------------------------------------------------------------------


def _same_padded(m: Any, x: Tensor) -> Tensor:
    for _ in range(5):
        pads = [max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:]]
        x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        x = m.conv(x).relu()
    return x


def test_sizes_do_not_grow_from_layer_to_layer() -> None:
    net = healthy(Lambda(_same_padded, conv=nn.Conv2d(2, 2, 3, stride=2)))
    x = torch.randn(1, 2, 64, 64, dtype=torch.float64)
    program = program_of(net, x, dynamic=("batch", "height", "width"))
    last = next(n for n in reversed([*program.calls()]) if isinstance(n.meta["val"], Tensor))
    texts = [str(n) for n in last.meta["val"].shape[2:]]
    assert all(t.startswith("((") and t.endswith("//32)") and len(t) < 20 for t in texts), texts
    for size in ((33, 64), (97, 50), (32, 95)):
        assert module_rel(net, program, [torch.randn(2, 2, *size, dtype=torch.float64)]) <= 1e-15


def test_torch_is_as_it_was_behind_it() -> None:
    before = sym_node.SymNode.__init__
    with pytest.raises(KeyError), plain_sizes():
        assert sym_node.SymNode.__init__ is not before
        raise KeyError
    capture(nn.Conv2d(1, 1, 1).eval(), [torch.randn(1, 1, 4, 4)], dynamic=("height",))
    assert sym_node.SymNode.__init__ is before


def test_whether_a_size_is_a_number_is_found_out_once_and_after_it_by_sympy_again() -> None:
    asked, size = sympy.Expr.is_number, 3 * H + 1
    with plain_sizes(), patch.object(sympy.Add, "args", new_callable=PropertyMock, return_value=size.args) as looked:
        for _ in range(5):
            assert size.is_number is False and sympy.sqrt(2).is_number is True
        assert looked.call_count == 1
    assert sympy.Expr.is_number is asked
