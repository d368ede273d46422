"""Emission as a torch module and as a `.pt2` archive: names, dtypes, trainability, signatures, and safe writing."""

from __future__ import annotations

import copy
import logging
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.conversion import convert
from reparam.emit import export_program, finalize, save_pt2, to_module
from reparam.errors import InputError, MachineError
from reparam.ir import Program, aten, evaluate
from reparam.utils import SYMBOLIC_SHAPES
from support.helpers import Lambda, conv_bn, fuse, healthy, program_of


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 4, 6, 6), generator=torch.Generator().manual_seed(2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return healthy(nn.Sequential(conv_bn(padding=1), nn.ReLU(), conv_bn(padding=1))).float()


def program(*names: str, model: nn.Module | None = None) -> Program:
    """`model` (default: two folded blocks); every name is a new weight that is added to the output."""
    fused = fuse(model or network(), image()).program
    (value,) = fused.output.all_input_nodes
    total = value
    for i, name in enumerate(names):
        weight = fused.weight(torch.full((1,), float(i + 1)), name, like=fused.output)
        total = fused.call(aten.add.Tensor, (total, weight), like=fused.output)
    if total is not value:
        fused.output.replace_input_with(value, total)
    return fused


# ---- names -------------------------------------------------------------------------------------------------------


def test_folded_weights_take_the_names_that_the_original_had() -> None:
    emitted = finalize(program())
    assert sorted(emitted.constants) == ["0.0.bias", "0.0.weight", "2.0.bias", "2.0.weight"]
    assert set(to_module(emitted).state_dict()) == set(emitted.constants)
    assert {str(n.target) for n in emitted.graph.nodes if n.op == "get_attr"} == set(emitted.constants)


@pytest.mark.parametrize(
    "names, expected",
    [
        (("w", "w", "w"), ["w", "w_1", "w_2"]),
        (("w", "w_1", "w"), ["w", "w_1", "w_2"]),
        (("w_1", "w", "w"), ["w_1", "w", "w_2"]),
        (("a.b", "a.b.c"), ["a.b", "a_b_c"]),
        (("a.b.c", "a.b"), ["a.b.c", "a.b_1"]),
        (("a", "a.b", "a.b.c", "a_b"), ["a", "a_b", "a_b_c", "a_b_1"]),
    ],
)
def test_names_are_unique_and_none_is_a_module_and_a_tensor_at_once(names: Any, expected: list[str]) -> None:
    before = program(*names)
    truth = evaluate(before, [image().double()])[0]
    emitted = finalize(before)
    assert [n for n in emitted.constants if n not in ("0.0.weight", "0.0.bias", "2.0.weight", "2.0.bias")] == expected
    module = to_module(emitted)
    assert set(dict(module.named_parameters())) == set(emitted.constants)
    assert torch.allclose(module(image()).double(), truth, atol=1e-5)


def test_a_layer_that_is_called_twice_is_emitted_once() -> None:
    model = healthy(Lambda(lambda m, x: m.block(m.block(x).relu()), block=conv_bn(padding=1))).float()
    emitted = finalize(program(model=model))
    assert sorted(emitted.constants) == ["block.0.bias", "block.0.weight"]


# ---- dtypes ------------------------------------------------------------------------------------------------------


def mixed() -> nn.Module:
    """float32 layers, a float64 gain that stays float64, a bfloat16 table, an integer buffer."""

    def forward(m: Any, x: Tensor) -> Any:
        h = m.block(x)
        return h.double() * m.gain, m.table[m.index].float() + h.mean()

    model = healthy(Lambda(forward, block=conv_bn(padding=1))).float()
    model.gain = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    model.table = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
    model.register_buffer("index", torch.tensor([4, 0, 0]))
    return model


def test_every_weight_keeps_its_own_dtype() -> None:
    emitted = finalize(program_of(mixed(), image()))
    found = {n: c.value.dtype for n, c in emitted.constants.items()}
    assert found["gain"] == torch.float64 and found["table"] == torch.bfloat16 and found["index"] == torch.int64
    assert found["block.0.weight"] == torch.float32
    assert all(c.value.dtype == c.dtype and not c.folded for c in emitted.constants.values())


def test_another_dtype_replaces_the_main_one_alone() -> None:
    emitted = finalize(program(model=network()), torch.bfloat16)
    assert {c.value.dtype for c in emitted.constants.values()} == {torch.bfloat16}
    assert emitted.dtype == torch.bfloat16 and emitted.inputs[0].dtype == torch.bfloat16
    assert to_module(emitted)(image().bfloat16()).dtype == torch.bfloat16
    others = finalize(program_of(mixed(), image()), torch.float16)
    found = {n: c.value.dtype for n, c in others.constants.items()}
    assert found["gain"] == torch.float64 and found["table"] == torch.bfloat16
    assert found["block.0.weight"] == torch.float16


def test_casts_to_the_main_dtype_follow_it() -> None:
    model = Lambda(lambda m, x: m.fc(x).sigmoid().to(torch.float32) + x.to(torch.float64).float(), fc=nn.Linear(6, 6))
    emitted = finalize(program_of(model, image()), torch.bfloat16)
    assert to_module(emitted)(image().bfloat16()).dtype == torch.bfloat16


def test_untouched_weights_share_their_storage_and_folded_ones_are_new() -> None:
    block, fc = conv_bn(padding=1), nn.Linear(6, 3)
    model = healthy(Lambda(lambda m, x: m.fc(m.block(x)), block=block, fc=fc)).float()
    kernel: Tensor = block[0].weight
    emitted = finalize(program(model=model))
    assert emitted.constants["fc.weight"].value.data_ptr() == fc.weight.data_ptr()
    assert emitted.constants["block.0.weight"].value.data_ptr() != kernel.data_ptr()


def test_a_weight_that_does_not_fit_the_dtype_is_named() -> None:
    before = program("huge")
    name = next(n for n, c in before.constants.items() if c.origin == "huge")
    before.constants[name].value.fill_(1e5)
    with pytest.raises(InputError, match="weight 'huge' does not fit float16"):
        finalize(before, torch.float16)


# ---- the module --------------------------------------------------------------------------------------------------


def test_what_was_trainable_is_trainable_and_what_was_a_buffer_is_one() -> None:
    model = healthy(Lambda(lambda m, x: m.block(x).relu() * m.gain + m.map, block=conv_bn(padding=1))).float()
    model.gain = nn.Parameter(torch.randn(6, 6))
    model.register_buffer("map", torch.randn(6, 6))
    module = convert(model, image()).module
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    assert set(parameters) == {"block.0.weight", "block.0.bias", "gain"}
    assert set(buffers) == {"map"}
    assert all(p.requires_grad for p in parameters.values())
    module(image()).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in parameters.values())


def test_the_module_can_be_trained_copied_and_restored() -> None:
    module = convert(network(), image()).module
    assert not module.training
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
    state = copy.deepcopy(module.state_dict())
    first = module(image()).square().mean()
    first.backward()
    optimiser.step()
    assert bool(module(image()).square().mean() < first)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(image()), module(image()))
    module.load_state_dict(state)
    assert torch.equal(module(image()).square().mean(), first)


def keyword_model() -> nn.Module:
    def forward(
        m: Any, x: Tensor, pair: tuple[Tensor, list[Tensor]], *, scale: Tensor, extra: dict[str, Tensor]
    ) -> Any:
        return {"sum": m.block(x) + pair[0], "rest": (pair[1][0] * scale, [extra["a"] - extra["b"]])}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = conv_bn(padding=1)

        def forward(self, x: Tensor, pair: Any, *, scale: Tensor, extra: dict[str, Tensor]) -> Any:
            return forward(self, x, pair, scale=scale, extra=extra)

    return healthy(Model()).float()


def keyword_arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
    pair = (image(), [image()])
    return (image(), pair), {"scale": torch.tensor(2.0), "extra": {"a": image(), "b": 0.5 * image()}}


def flat(value: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(value)


def assert_close(truth: Any, got: Any) -> None:
    assert torch.utils._pytree.tree_structure(truth) == torch.utils._pytree.tree_structure(got)
    for a, b in zip(flat(truth), flat(got), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_keyword_arguments_and_nested_ones_keep_the_signature(tmp_path: Path) -> None:
    model = keyword_model()
    args, kwargs = keyword_arguments()
    truth = model(*args, **kwargs)
    result = convert(torch.export.export(model, args, kwargs, strict=False))
    assert_close(truth, result.module(*args, **kwargs))
    backwards = dict(reversed(kwargs.items()))
    assert_close(truth, result.module(*args, **backwards))
    result.save(tmp_path / "k.pt2")
    assert_close(truth, torch.export.load(tmp_path / "k.pt2").module()(*args, **kwargs))
    with pytest.raises(InputError, match="takes 'x', 'arg1', 'scale', 'extra', and was not given 'scale'"):
        result.module(*args, extra=kwargs["extra"])


def test_nested_arguments_alone_keep_the_signature(tmp_path: Path) -> None:
    model = healthy(Lambda(lambda m, pair, x: [m.a(pair[0]), {"y": pair[1]["z"] * x}], a=conv_bn(padding=1))).float()
    args = ((image(), {"z": image()}), image())
    result = convert(model, *args)
    assert_close(model(*args), result.module(*args))
    result.save(tmp_path / "n.pt2")
    assert_close(model(*args), torch.export.load(tmp_path / "n.pt2").module()(*args))


def test_a_result_that_is_an_input_or_a_weight_comes_out() -> None:
    model = healthy(Lambda(lambda m, x: (x, m.a[0].weight, m.a(x)), a=conv_bn(padding=1))).float()
    module = convert(model, image()).module
    x, weight, _ = module(image())
    assert torch.equal(x, image()) and torch.equal(weight, model.a[0].weight)


# ---- archives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [("batch",), ("batch", "height", "width"), ()])
def test_the_free_axes_stay_free(dynamic: tuple[str, ...], tmp_path: Path) -> None:
    result = convert(network(), image(), dynamic=dynamic)
    result.save(tmp_path / "d.pt2")
    loaded = torch.export.load(tmp_path / "d.pt2").module()
    sizes = {"batch": (5, 4, 6, 6), "height": (2, 4, 9, 6), "width": (2, 4, 6, 11)}
    for axis, size in sizes.items():
        x = image(*size)
        if axis in dynamic:
            assert torch.equal(loaded(x), result.module(x))
        else:
            with pytest.raises((AssertionError, RuntimeError)):
                loaded(x)


def test_an_archive_holds_no_example_inputs_and_fixed_kinds_of_arguments() -> None:
    exported = export_program(finalize(program()))
    assert len(exported.graph_signature.user_inputs) == 1
    assert set(exported.state_dict) == {"0.0.bias", "0.0.weight", "2.0.bias", "2.0.weight"}


def test_an_archive_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    emitted = finalize(program())
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"net\.pt2 exists already"):
        save_pt2(emitted, path)
    assert path.read_bytes() == b"old"
    save_pt2(emitted, path, force=True)
    assert path.read_bytes() != b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 4000])
@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(size: int, existing: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    emitted = finalize(program())
    if existing:
        path.write_bytes(b"old")
    with disk_of(size), pytest.raises(MachineError, match="nothing was written") as error:
        save_pt2(emitted, path, force=True)
    assert error.value.exit_code == 3
    assert str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == (["net.pt2"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_a_folder_that_is_missing_is_the_machines_fault_and_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"cannot write .*nowhere/net\.pt2: No such file or directory"):
        save_pt2(finalize(program()), tmp_path / "nowhere" / "net.pt2")


def test_a_bare_file_name_is_written_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_pt2(finalize(program()), Path("net.pt2"))
    assert (tmp_path / "net.pt2").stat().st_size > 1000


def test_a_copy_refuses_other_sizes_too() -> None:
    module = to_module(finalize(program()))
    twice = copy.deepcopy(copy.deepcopy(module))
    for network in (module, copy.deepcopy(module), twice, _pickled(module), _pickled(_pickled(twice))):
        assert network(image()).shape[0] == 2
        with pytest.raises(InputError, match=r"verified for inputs of shape \[any, 4, 6, 6\], not \[2, 4, 7, 6\]"):
            network(image(2, 4, 7, 6))


def started() -> tuple[nn.Module, Tensor]:
    """A network that makes a value of its own: the state that an LSTM starts from."""
    torch.manual_seed(0)
    return Lambda(lambda m, x: m.memory(x)[0], memory=nn.LSTM(4, 4, batch_first=True)).eval(), torch.randn(2, 3, 4)


def test_what_is_made_inside_follows_the_weights_to_another_dtype() -> None:
    model, x = started()
    module = convert(model, x).module
    wide = copy.deepcopy(module).double()
    torch.testing.assert_close(wide(x.double()), model.double()(x.double()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wide.float()(x), module(x), rtol=0, atol=0)
    assert _pickled(copy.deepcopy(module).bfloat16())(x.bfloat16()).dtype is torch.bfloat16


def test_what_is_made_inside_follows_the_weights_to_another_device() -> None:
    model, x = started()
    module = convert(model, x).module.to("meta")
    assert module(x.to("meta")).device.type == "meta"
    assert {str(n.kwargs["device"]) for n in module.graph.nodes if "device" in n.kwargs} == {"meta"}


def _pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def test_a_keyword_of_another_size_is_refused_in_any_order() -> None:
    model = keyword_model()
    args, kwargs = keyword_arguments()
    module = convert(torch.export.export(model, args, kwargs, strict=False)).module
    for name, value in kwargs.items():
        wrong = pytree.tree_map(lambda v: v.expand(2, *v.shape) if isinstance(v, Tensor) else v, value)
        for changed in ({**kwargs, name: wrong}, dict(reversed({**kwargs, name: wrong}.items()))):
            with pytest.raises(InputError, match="verified for inputs of shape"):
                module(*args, **changed)


@pytest.mark.parametrize("name", ["to", "graph", "code", "input_check", "_modules", "T_destination", "class"])
def test_a_weight_whose_name_a_module_has_for_itself_is_renamed(name: str, tmp_path: Path) -> None:
    given = finalize(program())
    taken = f"{name}_.weight"
    names = {"0.0.weight": f"{name}.weight", "0.0.bias": f"{name}.to", "2.0.weight": taken}
    for node in given.graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(str(node.target), node.target)
    given.constants = {names.get(k, k): v for k, v in given.constants.items()}
    module = to_module(given)
    assert list(dict(module.named_parameters())) == [f"{name}__.weight", f"{name}__.to_", taken, "2.0.bias"]
    x = image()
    assert torch.equal(module(x), convert(network(), x).module(x))
    save_pt2(given, tmp_path / "n.pt2")
    assert torch.equal(module(x), torch.export.load(tmp_path / "n.pt2").module()(x))


def test_torch_logs_nothing_of_sizes_that_it_cannot_solve(tmp_path: Path) -> None:
    """As many distances as there are pairs in a batch of any size."""
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    model = Lambda(lambda m, x: torch.pdist(m.layer(x)), layer=nn.Linear(4, 2))
    fused = fuse(model, torch.randn(3, 4)).program
    logging.getLogger(SYMBOLIC_SHAPES).addHandler(handler)
    save_pt2(fused, tmp_path / "distances.pt2")
    logging.getLogger(SYMBOLIC_SHAPES).removeHandler(handler)
    assert told == []
