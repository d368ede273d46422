"""Architectures by name, built without downloads, and random statistics that keep activations in range."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import InputError, MachineError
from reparam.loading import build_architecture, load, random_statistics, randomize_statistics, zoo
from reparam.loading.zoo import available, build_without_init, meta_state
from reparam.utils import torchvision_ops
from reparam.utils.torchvision_ops import register_missing_torchvision_ops


@pytest.mark.parametrize(
    "spec, arch_args, shapes",
    [
        ("torchvision/resnet18", {}, ((3, 224, 224),)),
        ("torchvision/inception_v3", {}, ((3, 299, 299),)),
        ("torchvision/r3d_18", {}, ((3, 16, 112, 112),)),
        ("torchvision/lraspp_mobilenet_v3_large", {}, ((3, 520, 520),)),
        ("torchvision/vit_b_32", {"image_size": 64}, ((3, 64, 64),)),
        ("torchvision/ssdlite320_mobilenet_v3_large", {}, None),
        ("timm/test_resnet", {"num_classes": 7}, ((3, 160, 160),)),
        ("timm/test_vit", {"img_size": 64, "in_chans": 1}, ((1, 64, 64),)),
        ("torch.nn:Linear", {"in_features": 2, "out_features": 3}, None),
    ],
)
def test_an_architecture_is_built_in_evaluation_mode_with_its_input_shapes(spec, arch_args, shapes) -> None:
    built = build_architecture(spec, arch_args)
    assert built.spec == spec
    assert built.input_shapes == shapes
    assert not any(m.training for m in built.module.modules())


def test_the_input_shapes_fit_the_network() -> None:
    for spec in ("timm/test_resnet", "torchvision/mobilenet_v3_small"):
        built = build_architecture(spec)
        assert built.input_shapes is not None
        assert built.module(torch.randn(1, *built.input_shapes[0])).shape == (1, 1000)


def test_the_seed_alone_decides_the_weights_and_leaves_the_callers_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (build_architecture("timm/test_resnet", seed=s).module.state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(
    "spec", ["torchvision/googlenet", "timm/test_vit", "timm/test_efficientnet", "timm/test_nfnet"]
)
def test_building_without_allocation_gives_the_same_keys_and_shapes(spec: str) -> None:
    expected = {k: tuple(v.shape) for k, v in build_architecture(spec).module.state_dict().items()}
    assert meta_state(spec) == expected
    skipped = build_without_init(spec).module.state_dict()
    assert {k: tuple(v.shape) for k, v in skipped.items()} == expected
    assert not any(v.is_meta for v in skipped.values())


def test_skipping_initialisation_keeps_buffers_and_the_generator() -> None:
    before = torch.get_rng_state()
    built = build_without_init("timm/test_resnet").module
    assert torch.equal(before, torch.get_rng_state())
    real = build_architecture("timm/test_resnet").module
    assert all(torch.equal(a, b) for a, b in zip(built.buffers(), real.buffers(), strict=True))
    assert all(p.requires_grad for p in built.parameters())


@pytest.mark.parametrize(
    "spec, message",
    [
        ("torchvision/resnet5", "the nearest are torchvision/resnet50,"),
        ("timm/resnet5", "the nearest are timm/resnet50,"),
        ("torchvision/repvgg_a0", "the nearest are timm/repvgg_a0,"),
        ("timm/hf-hub:someone/model", "is not an architecture of timm"),
        ("timm/local-dir:/tmp", "is not an architecture of timm"),
        ("reparam/no_such_model", "is not an architecture of reparam"),
        ("resnet50", "did you mean torchvision/resnet50 or timm/resnet50?"),
        ("no-such-thing", "write torchvision/NAME, timm/NAME, reparam/NAME or package.module:factory"),
        ("a b:c", "write torchvision/NAME"),
        ("no_such_package.models:net", "there is no module 'no_such_package'"),
        ("torch.nn:Conv5d", "has no factory 'Conv5d'; the nearest are Conv"),
    ],
)
def test_an_unknown_name_gives_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        build_architecture(spec)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "spec, arch_args, message",
    [
        ("torchvision/resnet18", {"bogus": 1}, "it takes (block, layers, num_classes=1000,"),
        ("timm/test_resnet", {"bogus": 1}, "it takes (block, layers, num_classes=1000,"),
        ("timm/test_vit", {"img_size": "large"}, "could not be built with img_size='large'"),
        ("torch.nn:Linear", {"in_features": 1}, "it takes (in_features, out_features, bias=True,"),
        ("torch:zeros", {"size": [1]}, "built a Tensor; it must return a torch.nn.Module"),
        ("timm/test_resnet", {"pretrained": True}, "would fetch weights"),
        ("torchvision/resnet18", {"weights": "DEFAULT"}, "would fetch weights"),
    ],
)
def test_wrong_arguments_give_the_signature(spec: str, arch_args, message: str) -> None:
    with pytest.raises(InputError) as error:
        build_architecture(spec, arch_args)
    assert message in str(error.value)


def test_a_missing_zoo_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError, match=r"pip install 'reparam\[zoo\]'"):
        build_architecture("timm/test_resnet")


def test_a_factory_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "class Tiny(nn.Sequential):\n"
        "    input_shapes = ((4,),)\n"
        "def tiny(width=3):\n"
        "    return Tiny(nn.Linear(4, width))\n"
        "def broken():\n"
        "    raise ValueError('no such width')\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    built = build_architecture("my_networks:tiny", {"width": 5})
    assert built.module(torch.randn(2, 4)).shape == (2, 5)
    assert built.input_shapes == ((4,),)
    assert sys.path == before
    assert meta_state("my_networks:tiny") == {"0.weight": (3, 4), "0.bias": (3,)}
    with pytest.raises(InputError, match=r"my_networks:broken could not be built \(ValueError: no such width\)"):
        build_architecture("my_networks:broken")
    with pytest.raises(InputError, match="the nearest are tiny"):
        build_architecture("my_networks:tinny")


def test_the_zoos_are_listed() -> None:
    assert "resnet50" in available("torchvision")
    assert "repvgg_a0" in available("timm")
    assert not any(name.startswith("_") for name in available("reparam"))


def test_registering_the_operators_twice_changes_nothing() -> None:
    libraries = list(torchvision_ops._LIBRARIES)
    register_missing_torchvision_ops()
    assert libraries == torchvision_ops._LIBRARIES


def test_a_fresh_process_needs_no_preparation_and_prints_nothing() -> None:
    code = "from reparam.loading.zoo import build_architecture as b; b('torchvision/googlenet'); b('timm/test_resnet')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.sweep
def test_a_trusted_pickle_of_torchvision_needs_no_preparation_either(tmp_path: Path) -> None:
    """Beside a torch of another build, torchvision imports only once its operators are declared."""
    from torchvision.ops import Permute

    torch.save(Permute([1, 0]), tmp_path / "net.pt")
    code = "import sys; from reparam.loading import load as l; print(l(sys.argv[1], trust=True).module)"
    words = [sys.executable, "-c", code, str(tmp_path / "net.pt")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "Permute()\n"), done.stderr


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load(None, arch="cwd_nets:make"),
        lambda folder: zoo.find_function("cwd_nets:make", "metric"),
        lambda folder: zoo.available("reparam"),
        lambda folder: zoo.available("timm"),
    ],
)
def test_every_loader_declares_the_operators_first(
    load: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(zoo, "register_missing_torchvision_ops", lambda: called.append("cwd_nets" in sys.modules))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cwd_nets", raising=False)
    (tmp_path / "cwd_nets.py").write_text("from torch import nn\ndef make():\n    return nn.ReLU()\n")
    load(tmp_path)
    assert called and not called[0]


class Norms(nn.Module):
    """A normalisation layer of every kind, one that sees a single value of each channel, and gains."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 40, 3)
        self.bn2 = nn.BatchNorm2d(40, momentum=0.3)
        self.gain = nn.Parameter(torch.full((40, 1, 1), 1e-6))
        self.bn_plain = nn.BatchNorm2d(40, affine=False)
        self.bn_batch = nn.BatchNorm2d(40, track_running_stats=False)
        self.bn1 = nn.BatchNorm1d(40, momentum=None)
        self.bn3 = nn.BatchNorm3d(40)
        self.unused = nn.BatchNorm1d(40)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn_batch(self.bn_plain(self.bn2(self.conv(x)).relu() * self.gain))
        h = self.bn3(h.unsqueeze(2)).mean((2, 3, 4))
        return self.bn1(h)


def test_statistics_are_estimated_disturbed_and_nothing_else_changes() -> None:
    module = randomize_statistics(Norms().train(), [torch.randn(1, 3, 9, 9)], seed=3)
    assert not any(m.training for m in module.modules())
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [n.momentum for n in norms] == [0.3, 0.1, 0.1, None, 0.1, 0.1]
    assert all(int(n.num_batches_tracked) == 0 for n in norms if n.num_batches_tracked is not None)
    assert not any(n._forward_pre_hooks for n in norms)
    for norm in norms:
        if norm.affine:
            assert ((norm.weight.abs() >= 0.5) & (norm.weight.abs() <= 1.5)).all()
            assert norm.bias.abs().max() > 0.05
        if norm.running_mean is not None and norm.running_var is not None:
            assert norm.running_mean.unique().numel() == norm.running_var.unique().numel() == 40
    assert sum(int((n.weight < 0).sum()) for n in norms if n.affine) > 5
    assert module.get_parameter("gain").abs().max() > 0.01


def test_gains_may_be_left_alone_and_the_seed_decides() -> None:
    one, again, other = (
        randomize_statistics(build_architecture("timm/test_resnet").module, [torch.randn(1, 3, 32, 32)], seed=s)
        for s in (0, 0, 1)
    )
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one(x), again(x))
        assert not torch.allclose(one(x), other(x))
    fixed = randomize_statistics(Norms(), [torch.randn(1, 3, 9, 9)], gains=False)
    assert torch.equal(fixed.get_parameter("gain"), torch.full((40, 1, 1), 1e-6))


@pytest.mark.parametrize(
    "spec", ["torchvision/resnet18", "timm/test_byobnet", "timm/test_efficientnet", "timm/test_nfnet", "timm/test_vit"]
)
def test_outputs_stay_in_range_on_other_inputs(spec: str) -> None:
    size = 160 if "vit" in spec else 64
    module = randomize_statistics(build_architecture(spec).module, [torch.randn(1, 3, size, size)], seed=5)
    with torch.no_grad():
        assert 1e-2 < float(module(torch.randn(3, 3, size, size)).abs().max()) < 1e2


def test_inputs_of_unequal_size_get_batches_of_one_size() -> None:
    class Guided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.wide = nn.Conv2d(2, 2, 8, 8)

        def forward(self, x: Tensor, guide: Tensor, step: Tensor) -> Tensor:
            return self.norm(x + self.wide(guide)) + step[:, None, None, None]

    inputs = [torch.randn(2, 2, 16, 16), torch.randn(2, 2, 128, 128), torch.tensor([1, 2])]
    assert not bool((randomize_statistics(Guided(), inputs).norm.running_mean == 0).any())


def test_outputs_out_of_range_are_an_error() -> None:
    class Exploding(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1e6

    with pytest.raises(InputError, match="outside 1e-3 … 1e3"):
        randomize_statistics(Exploding(4, 4), [torch.randn(2, 4)])
    with pytest.raises(InputError, match="outside 1e-3 … 1e3"):
        random_statistics._check_outputs(torch.tensor([float("nan")]))


def test_the_shapes_of_a_name_are_those_of_what_is_registered_under_it_now(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = importlib.import_module("timm.models._registry")._model_entrypoints
    for width in (3, 5):
        monkeypatch.setitem(registered, "test_vit", lambda width=width, **options: nn.Linear(width, 2))
        meta_state("timm/test_vit").clear()  # of a copy
        assert meta_state("timm/test_vit") == {"weight": (2, width), "bias": (2,)}


def test_what_a_zoo_builds_by_name_is_built_once_and_with_arguments_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    registered = importlib.import_module("timm.models._registry")._model_entrypoints
    monkeypatch.setitem(registered, "test_vit", lambda width=3, **options: made.append(width) or nn.Linear(width, 2))
    for _ in range(2):
        assert meta_state("timm/test_vit")["weight"] == (2, 3)
        assert meta_state("timm/test_vit", {"width": 4})["weight"] == (2, 4)
    assert made == [3, 4, 4]
