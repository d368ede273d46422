"""What cannot be taken in is refused in one sentence about the model, by every function of the Python API alike."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam import CaptureError, InputError
from reparam.capture import capture
from support.helpers import Lambda

IMAGE = torch.randn(1, 3, 8, 8)
ROW = torch.randn(2, 4)


class NoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self) -> Tensor:
        return self.weight * 2


class Keyword(nn.Linear):
    def forward(self, x: Tensor, *, scale: float) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


class NotSetUp(nn.Module):
    def __init__(self) -> None:
        pass


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3)


def kernel_of_zero() -> nn.Module:
    layer = conv()
    layer.weight, layer.kernel_size = nn.Parameter(torch.zeros(4, 3, 0, 0)), (0, 0)
    return nn.Sequential(layer)


def no_channels() -> nn.Module:
    layer = conv()
    layer.weight, layer.bias = nn.Parameter(torch.zeros(0, 3, 3, 3)), nn.Parameter(torch.zeros(0))
    return nn.Sequential(layer)


REFUSED: dict[str, tuple[Callable[[], Any], tuple[Any, ...], str]] = {
    "a file that is not there": (lambda: "net.pt", (IMAGE,), r"there is no file net\.pt; check the name"),
    "None": (lambda: None, (IMAGE,), "is wanted, not None"),
    "a class": (lambda: nn.Conv2d, (IMAGE,), "is wanted, not the class Conv2d; make an instance"),
    "a function": (lambda: conv, (IMAGE,), "is wanted, not the function conv"),
    "a state dict": (lambda: conv().state_dict(), (IMAGE,), "is wanted, not a collections.OrderedDict"),
    "not set up": (NotSetUp, (IMAGE,), r"NotSetUp is not set up; call super\(\)\.__init__\(\)"),
    "no inputs": (NoInputs, (), "takes no tensors, so it is a constant"),
    "no channels": (no_channels, (IMAGE,), "does not run on its example inputs"),
    "a kernel of zero": (kernel_of_zero, (IMAGE,), "kernel size should be greater than zero"),
    "scripted": (lambda: torch.jit.trace(conv(), IMAGE), (IMAGE,), r"is a scripted module \(torch\.jit\)"),
    "a scripted part": (
        lambda: nn.Sequential(torch.jit.trace(conv(), IMAGE), nn.ReLU()), (IMAGE,), "'0' in Sequential is a scripted"
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), (IMAGE,), r"\(LazyConv2d\) has no 'weight' before it has run"),
    "without values": (lambda: conv().to("meta"), (IMAGE,), "has no values for 'weight', only its shape"),
    "nothing returned": (lambda: Lambda(lambda net, x: None), (IMAGE,), "returns no tensors"),
    "a text returned": (lambda: Lambda(lambda net, x: "a"), (IMAGE,), "returns no tensors"),
    "no example": (lambda: nn.Sequential(conv()), (), "cannot be called with 0 example inputs"),
    "in a tuple": (
        lambda: nn.Bilinear(2, 2, 2), ((IMAGE, IMAGE),), "one for each, in this order by themselves, not in a tuple"
    ),
    "too many": (lambda: nn.Sequential(conv()), (IMAGE, IMAGE), "cannot be called with 2 example inputs"),
    "a keyword": (lambda: Keyword(4, 4), (ROW,), "give 'scale' a default, since inputs are given by position"),
    "a shape": (lambda: nn.Sequential(conv()), ((1, 3, 8, 8),), r"\(a tuple\).*example inputs are tensors"),
    "all in a tuple": (lambda: nn.Sequential(conv()), ((torch.ones(1, 3, 8, 8),),), r"by itself, not all in a tuple"),
    "an array": (lambda: nn.Sequential(conv()), (IMAGE.numpy(),), r"\(a numpy\.ndarray\).*inputs are tensors"),
    "no samples": (lambda: nn.Sequential(conv()), (IMAGE[:0],), "has no samples: its shape is 0x3x8x8"),
    "another dtype": (lambda: nn.Sequential(conv()), (IMAGE.long(),), r"\(int64 1x3x8x8\)"),
    "a sparse input": (lambda: nn.Linear(4, 4), (ROW.to_sparse(),), "an example input is a sparse tensor"),
    "endless": (lambda: Lambda(lambda net, x: net(x)), (IMAGE,), "maximum recursion depth"),
}  # fmt: skip


def api(model: Any, inputs: tuple[Any, ...], folder: Path) -> list[Callable[[], object]]:
    """Each function of the API on a model and its inputs."""
    return [
        lambda: reparam.convert(model, *inputs),
        lambda: reparam.explain(model, *inputs),
        lambda: reparam.export(model, *inputs, path=folder / "net.onnx"),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_in_is_one_sentence(case: str, tmp_path: Path) -> None:
    make, inputs, message = REFUSED[case]
    works = api(make(), inputs, tmp_path)
    for work in works[::2] if case == "a kernel of zero" else works:  # a dry run does not run it
        try:
            with pytest.raises(InputError, match=message) as error:
                work()
        except reparam.MachineError:  # the exporter is not installed
            continue
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


ODD_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bits8, torch.float4_e2m1fn_x2]
ODD: dict[str, Callable[[], Tensor]] = {
    "a sparse tensor": lambda: torch.eye(4).to_sparse(),
    "a sparse tensor ": lambda: torch.eye(4).to_sparse_csr(),
    "a quantised tensor": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    **{f"a {str(d)[6:]} tensor": functools.partial(lambda d: torch.ones(4, dtype=torch.uint8).view(d), d)
       for d in ODD_DTYPES},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@given(kind=st.sampled_from(sorted(ODD)), depth=st.integers(0, 3), used=st.booleans(), kept=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_tensor_of_an_odd_kind_is_named_wherever_it_lies(kind: str, depth: int, used: bool, kept: bool) -> None:
    """kept: whether it is a part of the state."""
    inner: nn.Module = Lambda(lambda net, x: x + net.odd.sum() if used else x * 2)
    inner.register_buffer("odd", ODD[kind](), persistent=kept)
    path = "odd"
    for _ in range(depth):
        inner, path = nn.Sequential(inner), f"0.{path}"
    with pytest.raises(InputError, match=f"has {kind.strip()} in '{path}', which no network takes"):
        reparam.convert(inner, ROW)


@given(dtype=st.sampled_from([torch.uint8, torch.int16, torch.int64, torch.bool, torch.complex64, torch.float64]))
def test_tensors_that_networks_do_hold_are_taken(dtype: torch.dtype) -> None:
    net = Lambda(lambda net, x: net.layer(x), layer=nn.Linear(4, 4))
    net.register_buffer("table", torch.ones(3).to(dtype))
    assert reparam.convert(net, ROW).report.equivalent


def test_parts_that_cannot_be_copied_are_no_reason_to_refuse() -> None:
    net = Lambda(lambda net, x: net.layer(x) * net.factor, layer=nn.Linear(4, 4), lock=threading.Lock())
    net.factor = torch.ones(1, requires_grad=True) * 2
    net.names = (n for n in "abc")
    assert reparam.convert(net, ROW).report.equivalent


def test_an_error_of_the_model_is_told_with_its_line() -> None:
    def fails(net: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("of the author")

    with pytest.raises(CaptureError, match=r"does not run on .*test_model_check\.py:\d+ `raise .*: of the author"):
        reparam.convert(Lambda(fails), ROW)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"seed": -1}, "the seed -1 is not a whole number"),
    ({"seed": 1.5}, r"the seed 1\.5 is not"),
    ({"seed": 2**70}, "is not a whole number from 0"),
    ({"seed": None}, "the seed None"),
    ({"dynamic": 3}, "dynamic is an int"),
    ({"dynamic": None}, "dynamic is None"),
    ({"dynamic": ("depth",)}, "unknown dynamic axis 'depth'"),
    ({"progress": 3}, "progress is an int, not a function"),
    ({"input_ranges": [(1,)]}, "each input range is a pair"),
    ({"input_ranges": [("a", "b")]}, "each input range is a pair"),
    ({"input_ranges": 3}, "each input range is a pair"),
    ({"input_ranges": [(float("nan"), 1.0)]}, "is empty"),
    ({"to": None}, "unknown target 'None'"),
    ({"to": ["fused"]}, "unknown target '\\['fused'\\]'"),
    ({"dynamic": {"x": 1}}, "dynamic holds an int for an input; name its axes"),
    ({"trust": torch.zeros(2)}, "(trust is a torch.Tensor, not True or False|the keywords that it takes are)"),
    ({"arch_args": torch.zeros(2)}, "(arch_args is a torch.Tensor, not a mapping|the keywords that it takes are)"),
    ({"carry": 3}, "unknown carry"),
    ({"bogus": 1}, "the keywords that it takes are"),
    ({"x": ROW}, "inputs are given by position"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_options_of_no_meaning_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    for work in (reparam.convert, reparam.explain, functools.partial(reparam.export, path=tmp_path / "net.onnx")):
        try:
            with pytest.raises(InputError, match=message):
                work(net, ROW, **options)
        except reparam.MachineError:
            continue
    for dtype in (torch.int8, "float16", 3):
        with pytest.raises(InputError, match="weights are not emitted in"):
            reparam.convert(net, ROW, dtype=dtype)  # type: ignore[arg-type]


# ---- names of inputs and outputs ---------------------------------------------------------------------------------


@given(key=st.text(max_size=12) | st.sampled_from(["", "a\0b", "\ud800", "a\nb", "it's", "\x1b[31m", "x" * 1001]))
@settings(max_examples=40, deadline=None)
def test_a_key_that_no_file_could_name_an_output_by_is_refused(key: str) -> None:
    net = Lambda(lambda net, x: {"first": x * 2, "more": [{key: net.layer(x)}]}, layer=nn.Linear(4, 4))
    if key and key.isprintable() and not set("\"'`\\") & set(key) and len(key) <= 1000:
        assert reparam.explain(net, ROW).plain is False
        return
    with pytest.raises(CaptureError, match=r"returns a mapping with the key .*; give it another name") as error:
        reparam.explain(net, ROW)
    assert str(error.value).isprintable()


def test_the_keys_of_inputs_are_names_too() -> None:
    net = Lambda(lambda net, x: net.layer(next(iter(x.values()))), layer=nn.Linear(4, 4))
    with pytest.raises(CaptureError, match="takes a mapping with the key '', which is empty"):
        reparam.explain(net, {"": ROW})
    assert reparam.explain(net, {"é x": ROW}).before.nodes


class Named(nn.Module):
    """Has a module, a weight or a buffer of a given name."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.own, self.kind = name, kind
        self.parts = {"module": self._modules, "weight": self._parameters, "buffer": self._buffers}
        made = {"module": nn.Linear(4, 4), "weight": nn.Parameter(torch.ones(4)), "buffer": torch.ones(4)}
        self.parts[kind][name] = made[kind]

    def forward(self, x: Tensor) -> Tensor:
        part: Any = self.parts[self.kind][self.own]
        return part(x) if self.kind == "module" else x * part


KINDS = st.sampled_from(["module", "weight", "buffer"])


@given(name=st.text(max_size=8) | st.sampled_from(["", "a\0", "\ud800", "a\nb", "it's", "a.b", "x" * 1001]), kind=KINDS)
@settings(max_examples=40, deadline=None)
def test_a_part_of_any_name_is_taken_or_refused_by_that_name(name: str, kind: str) -> None:
    assume(not hasattr(Named("plain", kind), name))
    try:
        assert reparam.explain(Named(name, kind), ROW).before.nodes
    except InputError as error:
        assert "whose name" in str(error) and str(error).isprintable()


class Repeated(nn.Module):
    """Holds 2^40 values that are stored as one (or as a row), and uses them or not."""

    def __init__(self, kind: str, *, used: bool, whole: bool = False) -> None:
        super().__init__()
        self.layer, self.used = nn.Linear(4, 4), used
        big = torch.zeros(1, dtype=torch.int64 if whole else torch.float32).expand(2**40)
        if kind == "buffer":
            self.register_buffer("big", big)
        elif kind == "windows":
            self.register_buffer("big", torch.zeros(2**20).as_strided((2**20, 2**20), (1, 0)))
        else:
            self.big = nn.Parameter(big) if kind == "weight" else big

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.big[..., :4].reshape(-1, 4)[:1] if self.used else self.layer(x)


@pytest.mark.parametrize("kind", ["buffer", "weight", "windows", "attribute"])
def test_values_that_are_stored_once_and_repeated_are_never_written_out(kind: str) -> None:
    assert reparam.convert(Repeated(kind, used=False), ROW).report.equivalent
    net = Repeated(kind, used=True)
    if kind == "attribute":  # a part of it is read while it is traced, and the rest is no weight of the graph
        assert reparam.convert(net, ROW).report.equivalent
        return
    for work in (reparam.convert, reparam.explain):
        with pytest.raises(CaptureError, match=r"'big' has 1,099,511,627,776 values and stores .* 8,796 GB: keep"):
            work(net, ROW)


def test_repeated_values_of_whole_numbers_too() -> None:
    with pytest.raises(CaptureError, match="'big' has 1,099,511,627,776 values and stores 1 of them"):
        reparam.convert(Repeated("buffer", used=True, whole=True), ROW)


def test_hooks_of_lazy_layers_are_torchs_own() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).eval()
    model.load_state_dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict())
    assert model[0]._forward_pre_hooks and capture(model, (torch.ones(2, 3, 5, 5),)).notes == ()
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    (note,) = capture(model, (torch.ones(2, 3, 5, 5),)).notes
    assert note.startswith("module '0' has hooks")
