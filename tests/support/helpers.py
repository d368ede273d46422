"""Small helpers of the pass tests: fuse a model, compare two programs in float64, write a graph as a short text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam.capture import capture
from reparam.ir import CONVS, TRANSPOSED_CONVS, Program, arguments, evaluate, is_call, op_name, pair, shape_of
from reparam.passes import fused_phases
from reparam.rewrite import Driver, Match, Outcome, Phase, Rewrite, Rule
from reparam.utils import DEFAULT_AXES

EXACT = 1e-12  # relative, float64: what a handful of layers may differ by


@dataclass(frozen=True)
class Fused:
    """A captured program, what a run of rules made of it, and what the run had to say."""

    original: Program
    program: Program
    outcome: Outcome

    @property
    def text(self) -> str:
        return graph_text(self.program)

    def missed(self, rule: str) -> list[str]:
        return [r.message for r in self.outcome.remarks if r.kind == "missed" and r.rule == rule]

    def passed(self, rule: str) -> list[str]:
        return [r.message for r in self.outcome.remarks if r.kind == "passed" and r.rule == rule]


def program_of(model: nn.Module, *inputs: Any, dynamic: Sequence[str] = DEFAULT_AXES) -> Program:
    """The captured program of `model`, as it is before any rule."""
    return capture(model, inputs, dynamic=dynamic).program


def run_rules(program: Program, *rules: Rule, allow_cost: bool = False) -> Fused:
    """Runs only `rules` on a copy of `program`, to their fixed point."""
    return run_phases(program, (Phase("test", rules),), allow_cost=allow_cost)


def run_phases(program: Program, phases: Sequence[Phase], *, allow_cost: bool = False) -> Fused:
    """Runs `phases` on a copy of `program` and checks that the graph that comes out is well formed."""
    copy = program.copy()
    outcome = Driver(copy, allow_cost=allow_cost).run(phases)
    copy.graph.lint()
    return Fused(program, copy, outcome)


def fuse(model: nn.Module, *inputs: Any, dynamic: Sequence[str] = DEFAULT_AXES) -> Fused:
    """Captures `model` and runs every rule of the target `fused`."""
    return run_phases(program_of(model, *inputs, dynamic=dynamic), fused_phases())


def apply_exactly(model: nn.Module, *inputs: Any, rules: Sequence[Rule], bound: float) -> Fused:
    """Captures `model`, runs only `rules`, and asserts that the result agrees with the module itself to `bound`."""
    fused = run_rules(program_of(model, *inputs), *rules)
    assert module_rel(model, fused.program, inputs) <= bound
    return fused


def fuse_exactly(model: nn.Module, *inputs: Any, bound: float, dynamic: Sequence[str] = DEFAULT_AXES) -> Fused:
    """Like `fuse`; asserts that the result agrees with the module itself (not only its capture) to `bound`."""
    fused = fuse(model, *inputs, dynamic=dynamic)
    assert module_rel(model, fused.program, inputs) <= bound
    assert max_rel(fused.original, fused.program, inputs) <= bound
    return fused


def max_rel(original: Program, fused: Program, inputs: Sequence[Any]) -> float:
    """The largest float64 difference of any output, relative to that output's largest magnitude."""
    flat = pytree.tree_leaves(tuple(inputs))
    return _gap(evaluate(original, flat), evaluate(fused, flat))


def module_rel(model: nn.Module, fused: Program, inputs: Sequence[Any]) -> float:
    """`max_rel` against the module in evaluation mode. The module has to be float64."""
    with torch.no_grad():
        copies = pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, tuple(inputs))
        truth = pytree.tree_leaves(model.eval()(*copies))
    return _gap(truth, evaluate(fused, pytree.tree_leaves(tuple(inputs))))


def _gap(truth: Sequence[Any], other: Sequence[Any]) -> float:
    worst = 0.0
    assert len(truth) == len(other)
    for a, b in zip(truth, other, strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point():
            worst = worst if torch.equal(torch.as_tensor(a), torch.as_tensor(b)) else math.inf
            continue
        if a.shape != b.shape or not bool(torch.isfinite(a).all()):
            return math.inf
        if a.numel():
            gap = float((a.double() - b.double()).abs().max()) / max(float(a.abs().max()), 1e-300)
            worst = max(worst, gap if math.isfinite(gap) else math.inf)
    return worst


# ---- models ------------------------------------------------------------------------------------------------------


def healthy(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affines for every norm of a tiny net (negative scales too), float64, evaluation mode.

    Every third channel has a negative scale, so that nothing passes by leaving signs out.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and m.running_mean is not None:
                assert m.running_var is not None
                m.running_mean.copy_(0.5 * torch.randn(m.num_features, generator=g))
                m.running_var.copy_(0.5 + torch.rand(m.num_features, generator=g))
            if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)) and m.weight is not None:
                m.weight.copy_(0.5 + torch.rand(m.weight.shape, generator=g))
                m.weight.view(-1)[1::3].neg_()
                if m.bias is not None:
                    m.bias.copy_(torch.randn(m.bias.shape, generator=g))
    return model.double().eval()


def positive(model: nn.Module) -> nn.Module:
    """Makes every norm's scale positive, for the rewrites that need it."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)) and m.weight is not None:
                m.weight.abs_()
    return model


def doubles(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Lambda(nn.Module):
    """A module from named children (or parameters) and a function of itself and the inputs."""

    def __init__(self, forward: Callable[..., Any], **children: Any) -> None:
        super().__init__()
        self.compute = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs: Any) -> Any:
        return self.compute(self, *inputs)


def conv_bn(c_in: int = 4, c_out: int = 4, k: Any = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, k, **options), nn.BatchNorm2d(c_out))


def vector(*shape: int, seed: int = 11) -> nn.Parameter:
    """A parameter whose entries lie in 0.5 ... 1.5, a few of them negative."""
    g = torch.Generator().manual_seed(seed)
    value = 0.5 + torch.rand(shape, generator=g, dtype=torch.float64)
    return nn.Parameter(value * torch.where(torch.rand(shape, generator=g) < 0.3, -1.0, 1.0).double())


CONVS_BY_RANK = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_BY_RANK = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS_BY_RANK = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Conv:
    """A drawn convolution and an input shape that fits it."""

    module: nn.Module
    shape: tuple[int, ...]
    rank: int
    c_out: int


@st.composite
def convolutions(
    draw: st.DrawFn, *, transposed: bool = False, padded: bool = True, ranks: Sequence[int] = (1, 2, 3)
) -> Conv:
    """Convolutions of every geometry: rank, groups, kernel, stride, padding, dilation, bias, odd and even sizes."""
    rank = draw(st.sampled_from(ranks))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    per_axis = st.integers(1, 3)
    kernel = tuple(draw(per_axis) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    stride = tuple(draw(per_axis) for _ in range(rank))
    padding = tuple(draw(st.integers(0, 2)) if padded else 0 for _ in range(rank))
    size = tuple(d * (k - 1) + 1 + draw(st.integers(0, 4)) for k, d in zip(kernel, dilation, strict=True))
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    if transposed:
        limit = [min(p, d * (k - 1)) for p, k, d in zip(padding, kernel, dilation, strict=True)]
        options["padding"] = tuple(limit)
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    else:
        options["padding"] = padding
    make = (TRANSPOSED_BY_RANK if transposed else CONVS_BY_RANK)[rank]
    return Conv(make(c_in, c_out, kernel, **options), (2, c_in, *size), rank, c_out)


# ---- graphs as text ----------------------------------------------------------------------------------------------


def graph_text(program: Program) -> str:
    """The graph as an expression: `relu(conv3x3(x))`. A value with several users gets a name: `a = relu(x); ...`.

    Convolutions show kernel, stride (s), groups (g) and dilation (d), not their weights; other weights are `w`.

    A rewrite changes which calls there are, and that fits on one line. `text_of` has a line for each call, with the
    names of the weights, all shapes and modules: five lines for relu(conv3x3(x) + x), which say little more about the
    rewrite, and change with every name that a rule gives to a weight. It is for people and has tests of its own.
    """
    shown: dict[fx.Node, str] = {}
    lines: list[str] = []
    inputs = [n for n in program.placeholders if n.users]
    for node in program.graph.nodes:
        if node.op == "placeholder":
            names = {1: ["x"]}.get(len(inputs), [f"x{i}" for i in range(len(inputs))])
            shown[node] = names[inputs.index(node)] if node in inputs else "-"
        elif node.op == "get_attr":
            shown[node] = "w"
        elif node.op == "output":
            lines.append(", ".join(_text(a, shown) for a in pytree.tree_leaves(node.args[0])))
        else:
            text = _call_text(node, shown)
            if len(node.users) > 1:
                name = _letter(len(lines))
                lines.append(f"{name} = {text}")
                text = name
            shown[node] = text
    return "; ".join(lines)


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 23 else f"v{i}"


def _text(value: Any, shown: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return shown[value]
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(v, shown) for v in value) + "]"
    return str(value)


def _call_text(node: fx.Node, shown: dict[fx.Node, str]) -> str:
    if is_call(node, CONVS | TRANSPOSED_CONVS):
        args = arguments(node)
        return f"{_conv_name(node, args)}({shown[args['input']]})"
    args = tuple(node.args)
    if op_name(node) in ("batch_norm", "linear"):
        args = args[:1]
    parts = [_text(a, shown) for a in args] + [f"{k}={_text(v, shown)}" for k, v in node.kwargs.items() if k != "eps"]
    return f"{op_name(node)}({', '.join(parts)})"


def _conv_name(node: fx.Node, args: dict[str, Any]) -> str:
    kernel = shape_of(args["weight"])[2:]
    n = len(kernel)
    name = ("deconv" if is_call(node, TRANSPOSED_CONVS) else "conv") + "x".join(map(str, kernel))
    for mark, value in (("s", pair(args["stride"], n)), ("d", pair(args["dilation"], n))):
        if any(v != 1 for v in value):
            name += mark + "x".join(map(str, value if len(set(value)) > 1 else value[:1]))
    return name + (f"g{args['groups']}" if args["groups"] != 1 else "")


def fingerprint(program: Program) -> str:
    """Everything about a graph: nodes, names, arguments, and the exact values of its weights."""
    lines = [f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in program.graph.nodes]
    for name, c in sorted(program.constants.items()):
        digest = hash(c.value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        lines.append(f"{name} {tuple(c.value.shape)} {c.value.dtype} {c.dtype} {c.trainable} {digest}")
    return "\n".join(lines)


# ---- negative controls -------------------------------------------------------------------------------------------

WRONG = 1e-6  # relative: far above any rounding, far below what a sloppy tolerance would notice


def perturb(program: Program, name: str | None = None, by: float = WRONG, row: int | None = None) -> Program:
    """A copy whose largest entry of one weight (default: the last one with a kernel) is off by the factor 1 + `by`.

    row: the index along the weight's first axis in which the entry lies (default: any).
    """
    copy = program.copy()
    _spoil(copy, name or _last_kernel(copy), by, row)
    return copy


def _last_kernel(program: Program) -> str:
    used = [str(n.target) for n in program.graph.nodes if n.op == "get_attr" and n.users]
    floating = [u for u in used if program.constants[u].value.is_floating_point()]
    return ([u for u in floating if program.constants[u].value.dim() > 1] or floating)[-1]


def _spoil(program: Program, name: str, by: float, row: int | None = None) -> None:
    constant = program.constants[name]
    value = constant.value.detach().clone().double()
    flat = (value if row is None else value[row]).view(-1)
    flat[flat.abs().argmax()] *= 1 + by
    program.constants[name] = replace(constant, value=value)


def assert_verification_bites(fused: Fused, inputs: Sequence[Any], *, bound: float) -> None:
    """The comparison passes on the result, and fails once a single weight of it is off by 1e-6 relative.

    One entry is tried for each row of the last kernel, since behind a ReLU some channels may be zero on these inputs.
    """
    assert max_rel(fused.original, fused.program, inputs) <= bound
    name = _last_kernel(fused.program)
    rows = fused.program.constants[name].value.shape[0]
    gaps = [max_rel(fused.original, perturb(fused.program, name, row=r), inputs) for r in range(rows)]
    assert max(gaps) > 1e3 * bound, gaps


@dataclass(frozen=True)
class Spoiled:
    """A rule whose new weight is wrong by 1e-6 relative in its largest entry: its evidence must reject it.

    entry: spoils this entry (modulo their number) of all new weights instead, by adding 1e-6.
    """

    inner: Any
    by: float = WRONG
    entry: int | None = None

    @property
    def name(self) -> str:
        return str(self.inner.name)

    @property
    def pattern(self) -> Any:
        return self.inner.pattern

    def check(self, program: Program, match: Match) -> Any:
        return self.inner.check(program, match)

    def rewrite(self, program: Program, plan: Any) -> Rewrite:
        before = set(program.constants)
        made: Rewrite = self.inner.rewrite(program, plan)
        fresh = [n for n in program.constants if n not in before]
        assert fresh, "this rule made no weight that could be spoiled"
        if self.entry is None:
            _spoil(program, max(fresh, key=lambda n: float(program.constants[n].value.abs().max())), self.by)
        else:
            self._add(program, fresh, self.entry % sum(program.constants[n].value.numel() for n in fresh))
        return made

    def _add(self, program: Program, names: Sequence[str], entry: int) -> None:
        for name in names:
            constant = program.constants[name]
            if entry < constant.value.numel():
                value = constant.value.clone()
                value.view(-1)[entry] += self.by
                program.constants[name] = replace(constant, value=value)
                return
            entry -= constant.value.numel()


def assert_no_wrong_entry_is_accepted(program: Program, rule: Any, entry: int, inputs: Sequence[Any]) -> bool:
    """One entry of the new weights is off by 1e-6: either the rewrite is rejected, or no output can tell.

    Returns whether there was a rewrite at all, so that a test can assert that it tried some.
    """
    spoiled = run_rules(program, Spoiled(rule, entry=entry))  # type: ignore[arg-type]  # as in assert_evidence_bites
    gap = max_rel(program, spoiled.program, inputs)
    assert gap <= EXACT, f"a weight that is off by 1e-6 was accepted, though the outputs differ by {gap:.2g}"
    return spoiled.outcome.rejected > 0 or bool(spoiled.passed(rule.name))


def assert_evidence_bites(program: Program, rule: Any, *others: Rule) -> None:
    """`rule` rewrites `program`; spoiled by 1e-6 it is rejected by its own check and leaves the graph as it was.

    others: rules that have to run first.
    """
    if others:
        program = run_rules(program, *others).program
    assert run_rules(program, rule).passed(rule.name)
    spoiled = run_rules(program, Spoiled(rule))  # type: ignore[arg-type]  # its name and pattern are the inner rule's
    assert not spoiled.passed(rule.name)
    assert spoiled.outcome.rejected >= 1
    assert any("rejected by its own check" in m for m in spoiled.missed(rule.name)), spoiled.missed(rule.name)
    assert fingerprint(spoiled.program) == fingerprint(program)
