"""Published weights by name, out of caches that the tests make: nothing is fetched."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from reparam.errors import InputError, UnsafeFileError
from reparam.loading import build_architecture, load, pretrained

SPEC = "torchvision/squeezenet1_1"
TIMM = "timm/test_resnet"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    constants: Any = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("there is no network here")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(pretrained, "getproxies", dict)
    return tmp_path


def published(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes, name: str = "squeezenet") -> Path:
    """Puts a file into torch's cache under the name that torchvision wants for it, and has torchvision want that."""
    models = importlib.import_module("torchvision.models")
    weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    file = folder / "torch" / "hub" / "checkpoints" / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.setattr(weights.value, "url", f"https://example.invalid/{file.name}")
    return file


def bytes_of(value: Any, path: Path, **how: Any) -> bytes:
    torch.save(value, path, **how)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["default", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_torchvision(name: str, zipped: bool, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_architecture(SPEC, seed=5).module
    content = bytes_of(net.state_dict(), caches / "x.pt", _use_new_zipfile_serialization=zipped)
    published(monkeypatch, caches, content)
    loaded = load(None, arch=SPEC, pretrained=name)
    told = "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert (loaded.published, loaded.random_seed, loaded.input_shapes) == (told, None, ((3, 224, 224),))
    assert loaded.notes == (f"the published weights {told} are used",)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), net(x))


def test_what_the_builder_sets_beside_the_weights_is_kept(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GoogLeNet's published weights are for inputs that it scales itself, which random ones are not."""
    models = importlib.import_module("torchvision.models")
    net = models.googlenet(weights=None, init_weights=False)
    content = bytes_of(net.state_dict(), caches / "x.pt")
    file = published(monkeypatch, caches, content, "googlenet")
    monkeypatch.setattr(models.GoogLeNet_Weights.IMAGENET1K_V1.value, "url", f"https://example.invalid/{file.name}")
    module: Any = load(None, arch="torchvision/googlenet", pretrained="default").module
    assert module.transform_input and module.aux1 is None and not net.transform_input


def test_a_file_of_another_hash_is_refused(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = published(monkeypatch, caches, bytes_of({"a": torch.ones(2)}, caches / "x.pt"))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(InputError, match="is not what was published: its sha256 begins with"):
        load(None, arch=SPEC, pretrained="default")


class Touch:
    """Unpickling an instance creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_in_the_cache_that_would_run_code_is_refused(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = caches / "marker"
    published(monkeypatch, caches, pickle.dumps(Touch(marker), protocol=2))
    with pytest.raises(UnsafeFileError, match="would run"):
        load(None, arch=SPEC, pretrained="default")
    assert not marker.exists()


def test_without_network_and_cache_it_is_a_sentence(caches: Path) -> None:
    for arch, told in (
        (SPEC, r"SqueezeNet1_1_Weights\.IMAGENET1K_V1 are not in the cache .*and cannot be fetched: .*; connect to"),
        (TIMM, r"timm/test_resnet are not in the cache .*and cannot be fetched: .*no network here; connect to"),
    ):
        with pytest.raises(InputError, match=told) as error:
            load(None, arch=arch, pretrained="default")
        assert error.value.exit_code == 2 and "\n" not in str(error.value)
    assert not list(caches.rglob("*.pth"))


@pytest.mark.parametrize(
    "arch, args, name, told",
    [
        (SPEC, {}, "IMAGENET1K_V9", "no published weights 'IMAGENET1K_V9'; choose from IMAGENET1K_V1"),
        (SPEC, {}, "\x1b[31m", "no published weights '.x1b.31m'; choose from"),
        (SPEC, {"num_classes": 3}, "default", "do not fit these arguments: .*num_classes"),
        (SPEC, {"in_chans": 1}, "default", "are for images of 3 channels"),
        (SPEC, {"no_such": 1}, "default", "could not be built with no_such=1"),
        ("torchvision/no_such", {}, "default", "is not an architecture of torchvision"),
        (TIMM, {}, "a9_in1k", "no published weights 'a9_in1k'; choose from r160_in1k"),
        (TIMM, {"num_classes": 3}, "default", "are for 1000 classes; leave out num_classes"),
        ("timm/no_such", {}, "default", "is not an architecture of timm"),
        ("reparam/mocapsnet", {}, "default", "of torchvision/NAME and timm/NAME, not of reparam/mocapsnet"),
        ("torch.nn:Linear", {}, "default", "not of torch.nn:Linear"),
    ],
)
def test_names_that_nothing_has(arch: str, args: dict[str, Any], name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(None, arch=arch, arch_args=args, pretrained=name)


def test_a_file_and_published_weights_are_not_both_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in place of .*net\.pt; leave out one of them"):
        load(tmp_path / "net.pt", arch=SPEC, pretrained="default")


def in_the_hub(folder: Path, net: nn.Module) -> None:
    """The weights in the layout of the hub's cache."""
    own = folder / "hub" / "models--timm--test_resnet.r160_in1k"
    for part in ("refs", "blobs", "snapshots/abc"):
        (own / part).mkdir(parents=True)
    (own / "refs" / "main").write_text("abc")
    save_file(dict(net.state_dict()), own / "blobs" / "123")
    (own / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/123")


@pytest.mark.parametrize(
    "arch, args, name",
    [
        (TIMM, {}, "default"),
        (TIMM, {}, "r160_in1k"),
        (TIMM, {}, "test_resnet.r160_in1k"),
        (f"{TIMM}.r160_in1k", {}, "default"),
        (TIMM, {"num_classes": 0}, "default"),
    ],
)
def test_weights_of_timm(
    arch: str, args: dict[str, Any], name: str, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub: Any = importlib.import_module("timm.models._hub")
    download = hub.hf_hub_download
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: download(*a, **k | {"cache_dir": str(caches / "hub")}))
    net = build_architecture(TIMM, seed=5).module
    in_the_hub(caches, net)
    loaded = load(None, arch=arch, arch_args=args, pretrained=name)
    assert (loaded.published, loaded.random_seed) == ("timm/test_resnet.r160_in1k", None)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = loaded.module.forward_features(x), net.forward_features(x)  # type: ignore[operator]
        assert torch.equal(ours, theirs)
        assert args or torch.equal(loaded.module(x), net(x))


def test_the_hub_is_asked_after_the_cache_alone(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub can be reached, it is asked once what the cache does not have."""
    asked: list[bool] = []
    timm: Any = importlib.import_module("timm")
    constants: Any = importlib.import_module("huggingface_hub.constants")
    real = timm.create_model

    def create(name: str, **kwargs: Any) -> Any:
        if kwargs.get("pretrained"):
            asked.append(constants.HF_HUB_OFFLINE)
            if len(asked) == 1:
                raise OSError("not there")
        return real(name, **kwargs | {"pretrained": False})

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(pretrained, "_check_connection", lambda: None)
    before = constants.HF_HUB_OFFLINE
    assert load(None, arch=TIMM, pretrained="default").published == "timm/test_resnet.r160_in1k"
    assert asked == [True, before] and before == constants.HF_HUB_OFFLINE
