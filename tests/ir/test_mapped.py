"""Large tensors in mapped files: what is given back, and that no value changes by it."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam import convert
from reparam.compare.adversarial import twin
from reparam.ir import Program, Room, evaluate, give_back, make_room, mapped
from reparam.ir.mapped import in_file
from reparam.loading import load

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells pages of files from others")
COUNT = 1 << 19  # float32 numbers of a large tensor


def resident(value: Tensor) -> int:
    """How many of the pages of a tensor this process holds."""
    size = mapped.mmap.PAGESIZE
    first, last = -(-value.data_ptr() // size), (value.data_ptr() + value.nbytes) // size
    with open("/proc/self/pagemap", "rb") as table:
        table.seek(8 * first)
        entries = mapped.np.frombuffer(table.read(8 * (last - first)), dtype=mapped.np.uint64)
    return int((entries >> mapped.np.uint64(63)).sum())


@pytest.fixture
def stored(tmp_path: Path) -> Tensor:
    """A large tensor, mapped from a checkpoint."""
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(COUNT)}, tmp_path / "a.pt")
    found: Tensor = torch.load(tmp_path / "a.pt", mmap=True)["weight"]
    return found


@linux
def test_pages_of_a_checkpoint_are_given_back_and_read_again(stored: Tensor) -> None:
    kept = stored.clone()
    assert resident(stored) > 0
    assert give_back(stored)
    assert resident(stored) == 0
    assert torch.equal(stored, kept)


@linux
def test_what_was_written_to_stays(stored: Tensor) -> None:
    kept = stored.clone()
    kept[COUNT // 2] = stored[COUNT // 2] = 7.0  # one page that the file does not hold
    assert not give_back(stored)
    assert resident(stored) > 0
    assert torch.equal(stored, kept)


@linux
def test_other_memory_stays() -> None:
    value = torch.ones(COUNT)
    assert not give_back(value)
    assert not give_back(nn.Parameter(value))
    assert bool((value == 1).all())


def test_small_tensors_and_tensors_without_memory_are_left_alone() -> None:
    assert not give_back(torch.ones(3))
    assert not give_back(torch.ones(COUNT, device="meta"))
    assert not give_back(torch.eye(700).to_sparse())
    small = torch.ones(3)
    assert in_file(small) is small


@linux
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_tensor_in_a_file_has_its_values_and_no_name(dtype: torch.dtype) -> None:
    value = torch.randn(3, COUNT // 2, generator=torch.Generator().manual_seed(0)).to(dtype).T
    made = in_file(value)
    assert made is not value
    assert made.dtype == dtype
    assert made.shape == value.shape
    assert torch.equal(made, value)
    assert give_back(made)
    assert resident(made) == 0
    made[0, 0] = 5.0  # it is ordinary memory for whoever writes to it
    assert give_back(made)
    assert float(made[0, 0]) == 5.0


def test_without_room_for_a_file_the_tensor_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped.tempfile, "NamedTemporaryFile", full)
    value = torch.ones(COUNT)
    assert in_file(value) is value


def test_another_system_gives_nothing_back(monkeypatch: pytest.MonkeyPatch, stored: Tensor) -> None:
    monkeypatch.setattr(mapped, "_discard", lambda: None)
    kept = stored.clone()
    assert not give_back(stored)
    assert in_file(kept) is kept


# ---- networks ----------------------------------------------------------------------------------------------------


def wide() -> nn.Module:
    """Three layers, each with a weight of 1 MiB and a batch norm to fold."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU()]
    net = nn.Sequential(*layers).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return net


def folded_in_memory(found: Program) -> int:
    """Bytes of folded weights that lie in memory."""
    return sum(c.value.nbytes for c in found.constants.values() if c.folded and not c.value.is_shared())


@linux
def test_folded_weights_beyond_the_room_lie_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is bit for bit the same, and so is what was measured on it."""
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    usual = convert(wide(), x)
    held: list[int] = []
    settle = Program.settle

    def watched(self: Program, nodes: object) -> None:
        settle(self, nodes)  # type: ignore[arg-type]
        held.append(folded_in_memory(self))

    monkeypatch.setattr(mapped, "IN_MEMORY", 1 << 20)
    monkeypatch.setattr(Program, "settle", watched)
    other = convert(wide(), x)
    assert max(held) <= (1 << 20) + (3 << 13)  # and biases
    assert usual.program.constants.keys() == other.program.constants.keys()
    for name, constant in usual.program.constants.items():
        assert torch.equal(constant.value, other.program.constants[name].value)
    assert usual.report.evidence == other.report.evidence


@linux
def test_a_checkpoint_is_not_held_by_whoever_converts_it(tmp_path: Path) -> None:
    """Neither the capture nor the checks keep pages of it, and layers that no rule touches are still its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)).eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    (tmp_path / "mapped_net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        loaded = load(tmp_path / "net.pt", arch="mapped_net:net")
    finally:
        sys.path.remove(str(tmp_path))
    result = convert(loaded.module, torch.randn(2, 512))
    weights = [p for p in loaded.module.parameters() if p.nbytes >= mapped.LEAST]
    own = {p.data_ptr() for p in weights}
    assert len(own) == 2
    assert own <= {c.value.data_ptr() for c in result.program.constants.values()}
    assert own <= {c.value.data_ptr() for c in result.original.constants.values()}
    assert [resident(p) for p in weights] == [0, 0]


class Float64(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest number of float64 bytes that the results of calls held at one time, those of 1 MiB and more."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        import weakref

        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            storage = result.untyped_storage()
            size, at = storage.nbytes(), storage.data_ptr()
            if size >= mapped.LEAST and at not in self.seen:
                self.seen.add(at)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, size, at)
        return result

    def gone(self, size: int, at: int) -> None:
        self.now -= size
        self.seen.discard(at)


def test_weights_are_widened_one_layer_after_the_other() -> None:
    found = convert(wide(), torch.randn(2, 512), to="as-is").program
    with Float64() as counted:
        evaluate(found, [torch.randn(2, 512)])
    assert counted.most == 512 * 512 * 8


def test_gradients_widen_weights_again_and_are_the_same() -> None:
    """No float64 weight outlives its call, neither on the way forth nor back."""
    found = convert(wide(), torch.randn(2, 512), to="as-is").program
    x = torch.randn(2, 512, dtype=torch.float64, requires_grad=True)
    module = wide().double()
    wanted = torch.autograd.grad(module(x).square().sum(), x)[0]
    with Float64() as counted:
        (y,) = evaluate(found, [x], gradients=True)
        gradient = torch.autograd.grad(y.square().sum(), x)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
    assert counted.most <= 2 * 512 * 512 * 8  # one more while the next is made


def test_what_is_kept_for_gradients_goes_with_the_outputs() -> None:
    """And does not wait for the collector of garbage."""
    found = convert(wide(), torch.randn(2, 512), to="as-is").program
    seen: list[weakref.ref[Tensor]] = []
    x = torch.randn(2, 512, dtype=torch.float64, requires_grad=True)
    gc.disable()
    try:
        found_outputs = evaluate(
            found, [x], gradients=True, observe=lambda node, value: seen.append(weakref.ref(value))
        )
        del found_outputs
        assert seen and all(value() is None for value in seen)
    finally:
        gc.enable()


@linux
def test_the_same_function_off_by_roundings_lies_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    found = convert(wide(), torch.randn(2, 512), to="as-is").program
    usual = twin(found, 1e-7)
    monkeypatch.setattr(mapped, "IN_MEMORY", 3 << 20)
    other = twin(found, 1e-7)
    large = [n for n, c in other.constants.items() if c.value.nbytes >= mapped.LEAST]
    assert len(large) == 3
    assert sum(other.constants[n].value.is_shared() for n in large) == 2
    for name, constant in usual.constants.items():
        assert torch.equal(constant.value, other.constants[name].value)


@linux
def test_the_way_back_gives_back_what_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = convert(wide(), torch.randn(2, 512), to="as-is").program
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    other = twin(found, 1e-7)
    large = [c.value for c in other.constants.values() if c.value.nbytes >= mapped.LEAST]
    x = torch.randn(2, 512, dtype=torch.float64, requires_grad=True)
    (y,) = evaluate(other, [x], gradients=True)
    assert [resident(v) for v in large] == [0, 0, 0]
    torch.autograd.grad(y.square().sum(), x)
    assert sum(resident(v) > 0 for v in large) == 1  # the last one


def test_a_room_is_filled_before_files_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", COUNT * 8)
    room, values = Room(), [torch.full((COUNT,), float(i)) for i in range(3)]
    taken = [room.take(v) for v in values]
    assert taken[0] is values[0] and taken[1] is values[1]
    assert torch.equal(taken[2], values[2])


@linux
def test_room_is_made_by_giving_back_what_lies_in_files(stored: Tensor) -> None:
    kept = stored.clone()
    other = torch.ones(COUNT)
    make_room([stored, other])
    assert resident(stored) == 0
    assert torch.equal(stored, kept)
    assert bool((other == 1).all())
