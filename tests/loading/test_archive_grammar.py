"""The grammars of an archive: what torch.export prints is in them, what could run code is not."""

from __future__ import annotations

import pytest
import torch

from reparam.loading import archive_grammar as grammar


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Add(FloorDiv(Add(Symbol('s0', integer=True), Integer(-1)), Integer(2)), Integer(1))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "Mul(Rational(1, 2), Float('0.5', precision=53), Symbol('zuf0'))",
        "s0 + 2*(s1 - 1)//2 % 3",
        "Max(1, Min(u0, 7)) >= 2",
        "Eq(s0, 4) & (s1 > 2)",
        "TruncToInt(2.0*ToFloat(s3))",
        "PowByNatural(s0, 2)",
    ],
)
def test_sizes_that_torch_prints_are_in_the_grammar(text: str) -> None:
    assert grammar.expression(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "os",
        "exit()",
        "__import__('os')",
        "s0.__class__",
        "s0[0]",
        "(lambda: 1)()",
        "[x for x in s0]",
        "Symbol('os.system')",
        "Symbol('s0', cls=1)",
        "Symbol(Symbol('s0'))",
        "sympify('1')",
        "Function('f')(s0)",
        "Integer('__import__')",
        "Float('1', dps=exit())",
        "'s0'",
        "s0 if s1 else s2",
        "s0 := 1",
        "f'{s0}'",
        "s0 # comment",
        "s0\n+1",
        "s٣",
        "2**10**10",
        "Pow(2, 100000)",
        "Pow(Pow(Pow(9, 9), 9), 9)",
        "2**s0",
        "LShift(1, 4096)",
        "9" * 40,
        "(" * 300 + "s0" + ")" * 300,
        "1+" * 15_000 + "1",
        "Add(s0, evaluate=exit())",
    ],
)
def test_everything_else_is_outside_the_grammar_of_sizes(text: str) -> None:
    assert grammar.expression(text) is not None


@pytest.mark.parametrize(
    "text",
    ["L['x'].size()[2] // 2 != 1", "((1 + (((-1) + L['x'].size()[3]) // 2))) != 1", "L['y']['k'][0].stride()[1] == 3"],
)
def test_guards_that_torch_writes_are_in_the_grammar(text: str) -> None:
    assert grammar.guard(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "L['x'].__class__",
        "L['x'].size(open('x'))",
        "L['x'].tofile('x')",
        "L['x\"']",
        "math.__loader__",
        "1) or exit(",
        "L['x'].size()[exit()]",
        "True or __import__('os')",
        "[1][0]",
    ],
)
def test_everything_else_is_outside_the_grammar_of_guards(text: str) -> None:
    assert grammar.guard(text) is not None


def test_no_operator_that_passes_takes_a_file_name() -> None:
    """Over every operator that torch registers under aten."""
    names = {(s.name.removeprefix("aten::"), s.overload_name or "default") for s in torch._C._jit_get_all_schemas()}
    passing = [f"{n}.{o}" for n, o in names if "::" not in n and grammar.operator(f"torch.ops.aten.{n}.{o}") is None]
    assert len(passing) > 1000
    assert not [p for p in passing if p.startswith(("save", "from_file", "warn", "_print", "set_"))]
    assert {"_conj.default", "_unique2.default", "_fused_rms_norm.default", "_int_mm.default"} <= set(passing)
    assert {"conv2d.default", "batch_norm.default", "add_.Tensor", "sym_size.int", "gelu.default"} <= set(passing)
