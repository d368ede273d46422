"""Folders as hubs have them: config.json names the architecture, its arguments and the images; the rest is refused."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reparam.data import Preprocessing
from reparam.engines import card_of
from reparam.errors import InputError, MachineError, ReparamError
from reparam.loading import build_architecture, load
from support.choice import mostly_in_sweeps
from support.mutating import NUMBERS, ODD, by_bytes, by_json
from support.payloads import PAYLOADS

build_architecture("timm/test_resnet")  # which makes timm importable beside a torch of another build
timm = importlib.import_module("timm")
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None


def hub(folder: Path, name: str, **args: Any) -> torch.nn.Module:
    """A folder as timm writes it for its hub."""
    from timm.models import save_for_hf

    torch.manual_seed(3)
    net: torch.nn.Module = timm.create_model(name, **args)
    save_for_hf(net.eval(), folder, safe_serialization=True)
    return net


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """The config of the folder, changed; None takes a value out."""
    value = json.loads((folder / "config.json").read_text()) | changes
    value = {k: v for k, v in value.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(value))
    return value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name, args, shape",
    [
        ("test_resnet", {}, (3, 160, 160)),
        ("test_resnet", {"num_classes": 10, "in_chans": 1, "global_pool": "max"}, (1, 160, 160)),
        ("test_vit", {"num_classes": 7, "img_size": 96}, (3, 96, 96)),
        ("test_resnet", {"num_classes": 0}, (3, 160, 160)),
    ],
)
def test_a_folder_of_timm(name: str, args: dict[str, Any], shape: tuple[int, ...], tmp_path: Path) -> None:
    net = hub(tmp_path / "hub", name, **args)
    loaded = load(tmp_path / "hub")
    assert (loaded.spec, loaded.arch_inferred, loaded.input_shapes) == (f"timm/{name}", False, (shape,))
    assert loaded.source == tmp_path / "hub" / "model.safetensors"
    x = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), net(x))
    again = load(tmp_path / "hub", arch=loaded.spec)
    assert again.arch_args == loaded.arch_args


@pytest.mark.filterwarnings("ignore")
def test_a_config_without_model_args_as_older_versions_write_it(tmp_path: Path) -> None:
    net = hub(tmp_path / "hub", "test_resnet", num_classes=10, in_chans=1, global_pool="max")
    config_of(tmp_path / "hub", model_args=None)
    loaded = load(tmp_path / "hub")
    assert loaded.arch_args == {"num_classes": 10, "in_chans": 1, "global_pool": "max"}
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), net(x))


@pytest.mark.filterwarnings("ignore")
def test_a_flat_config_as_the_first_versions_wrote_it(tmp_path: Path) -> None:
    net = hub(tmp_path / "hub", "test_resnet", num_classes=4)
    value = config_of(tmp_path / "hub", model_args=None)
    flat = {"architecture": "test_resnet", **value["pretrained_cfg"], "labels": ["a", "b", "c", "d"]}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(flat))
    loaded = load(tmp_path / "hub")
    assert loaded.arch_args == {"num_classes": 4} and loaded.labels == ("a", "b", "c", "d")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), net(x))


def test_how_images_go_in_and_the_labels_come_from_the_config(tmp_path: Path) -> None:
    hub(tmp_path / "hub", "test_vit", num_classes=3, img_size=96)
    value = config_of(tmp_path / "hub", label_names=["a", "b", "c"], label_descriptions={"b": "the second"})
    inner = value["pretrained_cfg"] | {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.5, "interpolation": "bilinear"}
    config_of(tmp_path / "hub", pretrained_cfg=inner)
    loaded = load(tmp_path / "hub")
    assert loaded.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), (96, 96), 192, "bilinear")
    card = card_of(loaded)
    assert card["preprocessing"]["size"] == [96, 96] and card["preprocessing"]["of"] == "config.json"
    assert card["labels"] == ["a", "the second", "c"]
    (tmp_path / "hub" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "size": {"height": 96, "width": 96}})
    )
    assert load(tmp_path / "hub").preprocessing == Preprocessing((0, 0, 0), (1, 1, 1), (96, 96), 96)


def test_a_config_that_tells_nothing_and_one_that_is_overruled(tmp_path: Path) -> None:
    hub(tmp_path / "test_resnet", "test_resnet")
    assert load(tmp_path / "test_resnet", arch="timm/test_resnet").spec == "timm/test_resnet"
    (tmp_path / "test_resnet" / "config.json").write_text('{"hello": 1}')
    loaded = load(tmp_path / "test_resnet", arch="timm/test_resnet")
    assert (loaded.spec, loaded.arch_inferred, loaded.preprocessing) == ("timm/test_resnet", False, None)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of timm whose config tests change."""
    folder = tmp_path_factory.mktemp("genuine") / "hub"
    hub(folder, "test_resnet", num_classes=3)
    return folder


@pytest.fixture
def folder(genuine: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((genuine / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"architecture": "no_such"}, "'timm/no_such' is not an architecture of timm; the nearest are"),
        ({"architecture": "hf-hub:a/b"}, "names the architecture 'hf-hub:a/b', which is none of timm's"),
        ({"architecture": "../../x"}, "which is none of timm's"),
        ({"architecture": ["test_resnet"]}, "which is none of timm's"),
        ({"model_args": [1]}, "gives its arguments in a form that timm does not write"),
        ({"model_args": {"no_such": 1}}, "could not be built with .*no_such"),
        ({"model_args": {"pretrained": True}}, "'pretrained' among the arguments, which fetches weights"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "'checkpoint_path' among the arguments, which fetches"),
        ({"model_args": {"pretrained_cfg": {"url": "x"}}}, "which fetches weights"),
        ({"model_args": {"layers": [10**9, 1, 1, 1]}}, "asks for layers of 1000000000, which no network has"),
        ({"model_args": {"num_classes": 10**400}}, r"asks for num_classes of 2\*\*1329, which no network has"),
        ({"model_args": {"base_width": -(10**12)}}, "asks for base_width of -1000000000000"),
        ({"model_args": {"drop_rate": 1e308}}, "which no network has"),
        ({"model_args": {"a": [[[[[[1]]]]]]}}, "nests the arguments of the network too deep"),
        ({"model_args": {"layers": [1] * 300}}, "gives 301 arguments, which no network takes"),
        ({"model_args": {"act_layer": "\x1b[31m"}}, "has a text for 'act_layer' that no network takes"),
        ({"model_args": {"num_classes": 1000}}, "wrong shape fc.weight"),
        ({"num_classes": 4, "model_args": None}, "wrong shape fc.weight"),
        ({"pretrained_cfg": 3}, "gives its arguments in a form that timm does not write"),
        ({"architecture": "test_vit"}, "does not fit timm/test_vit: missing cls_token"),
        ({"architecture": "resnet152", "model_args": {"block_args": None}}, "asks for a network of [0-9]+ values, and"),
    ],
)
def test_a_config_of_any_content_is_a_sentence(changes: dict[str, Any], told: str, folder: Path) -> None:
    config_of(folder, **changes)
    with pytest.raises(InputError, match=told) as error:
        load(folder)
    assert str(error.value).isprintable() and error.value.exit_code == 2


def test_an_architecture_that_is_given_needs_no_config(folder: Path) -> None:
    for changes in ({"model_args": {"layers": [10**9]}}, {"architecture": "no_such"}, {"architectures": ["A"]}):
        config_of(folder, **changes)
        loaded = load(folder, arch="timm/test_resnet")
        assert loaded.arch_args == {"num_classes": 3} and loaded.notes


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 9_000, b'{"a": 1, "a": 2}', b"1" * 6_000])
def test_a_config_that_is_none(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json (is not JSON|is empty|holds no mapping)") as error:
        load(folder)
    assert str(error.value).isprintable()


def test_a_config_outside_of_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "config.json"
    (folder / "config.json").rename(other)
    (folder / "config.json").symlink_to(other)
    with pytest.raises(InputError, match="is a link that leaves its folder"):
        load(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [48, pytest.param(2_000, marks=pytest.mark.sweep)])
def test_configs_damaged_at_random(count: int, folder: Path) -> None:
    """Values, keys and bytes of the config: a network that fits, or a sentence."""
    genuine, outcomes = (folder / "config.json").read_bytes(), {"taken": 0, "refused": 0}
    for seed in range(count):
        rng = random.Random(seed)
        content = (by_json if seed % 4 else by_bytes)(genuine, rng)
        if seed % 4 == 1:
            args = {
                rng.choice(["layers", "num_classes", "in_chans", "act_layer", "stem_width"]): rng.choice(
                    [*ODD, *NUMBERS]
                )
            }
            content = json.dumps(json.loads(genuine) | {"model_args": args}).encode()
        (folder / "config.json").write_bytes(content)
        try:
            load(folder)
            outcomes["taken"] += 1
        except ReparamError as error:
            assert isinstance(error, InputError) and str(error).isprintable() and "\n" not in str(error)
            outcomes["refused"] += 1
    print(outcomes)
    assert min(outcomes.values()) > 0.15 * count


@pytest.mark.parametrize("payload", mostly_in_sweeps(PAYLOADS, *PAYLOADS[::5]))
def test_a_payload_in_the_texts_of_a_config(payload: str, folder: Path) -> None:
    genuine = json.loads((folder / "config.json").read_text())
    for changed in (
        genuine | {"architecture": payload},
        genuine | {"model_args": {"act_layer": payload}},
        genuine | {"model_args": {payload: 3}},
        {**{k: v for k, v in genuine.items() if k != "architecture"}, "architectures": [payload], "model_type": "vit"},
        {**{k: v for k, v in genuine.items() if k != "architecture"}, "architectures": ["Vit"], "model_type": payload},
    ):
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises((InputError, MachineError)) as error:
            load(folder)
        assert str(error.value).isprintable()


# ---- transformers ------------------------------------------------------------------------------------------------


def test_without_transformers_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "transformers" else find(n, *a))
    (folder / "config.json").write_text('{"architectures": ["ResNetModel"], "model_type": "resnet"}')
    with pytest.raises(InputError, match=r"names ResNetModel of transformers.*pip install 'reparam\[transformers\]'"):
        load(folder)


@pytest.mark.parametrize(
    "config, told",
    [
        ({"architectures": ["A"], "model_type": "b", "auto_map": {"AutoModel": "x.Y"}}, "code that comes with the"),
        ({"architectures": [], "model_type": "b"}, "names no class of transformers"),
        ({"architectures": ["A"]}, "has no model_type"),
        ({"model_type": "b"}, "names no class of transformers"),
    ],
)
def test_configs_of_transformers_that_name_nothing(config: dict[str, Any], told: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=told):
        load(folder)


class Config(types.SimpleNamespace):
    """What the library's stand-in builds its network of."""


def pretended(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A library with the doors of transformers that are used: one network, one kind of config."""
    library: Any = types.ModuleType("transformers")
    logging: Any = types.ModuleType("transformers.utils.logging")
    logging.get_verbosity, logging.is_progress_bar_enabled, logging.CRITICAL = (lambda: 10), (lambda: True), 50
    logging.set_verbosity = lambda level: None
    logging.disable_progress_bar = logging.enable_progress_bar = lambda: None

    class PreTrainedModel(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, name: None, *, config: Any, state_dict: Any, dtype: torch.dtype, **rest: Any) -> Any:
            assert rest == {"output_loading_info": True, "local_files_only": True}
            net = cls(config).to(dtype)  # type: ignore[call-arg]
            found = net.load_state_dict(state_dict, strict=False)
            info = {"missing_keys": set(found.missing_keys), "unexpected_keys": set(found.unexpected_keys)}
            return net, info | {"mismatched_keys": set(), "error_msgs": []}

    class TinyModel(PreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(config.hidden_size, config.num_labels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.dense(x)
            return out

    def for_model(kind: str, **args: Any) -> Config:
        if kind != "tiny":
            raise ValueError(f"Unrecognized model identifier: {kind}")
        assert not {"id2label", "_name_or_path", "attn_implementation", "architectures"} & args.keys()
        return Config(**args)

    TinyModel.__module__ = PreTrainedModel.__module__ = "transformers.models.tiny"
    library.PreTrainedModel, library.TinyModel, library.__version__ = PreTrainedModel, TinyModel, "5"
    library.AutoConfig = types.SimpleNamespace(for_model=for_model)
    library.os = sys
    library.__spec__ = importlib.util.spec_from_loader("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", library)
    monkeypatch.setitem(sys.modules, "transformers.utils", types.ModuleType("transformers.utils"))
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", logging)
    return library


TINY = {
    **{"architectures": ["TinyModel"], "model_type": "tiny", "hidden_size": 4, "id2label": {"0": "a", "1": "b"}},
    **{"_name_or_path": "x", "attn_implementation": "a/b", "image_size": 8, "num_channels": 1},
}


def tiny(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    save_file({"dense.weight": torch.ones(2, 4).half(), "dense.bias": torch.ones(2)}, folder / "model.safetensors")
    return folder


def test_a_network_of_the_library_gets_our_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pretended(monkeypatch)
    loaded = load(tiny(tmp_path))
    assert isinstance(loaded.module, library.TinyModel) and not loaded.module.training
    assert (loaded.spec, loaded.input_shapes, loaded.labels) == ("transformers/TinyModel", ((1, 8, 8),), ("a", "b"))
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert load(tmp_path, arch="transformers/TinyModel").spec == loaded.spec


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"architectures": ["os"]}, "names os, which is no network of transformers 5"),
        ({"architectures": ["AutoConfig"]}, "names AutoConfig, which is no network"),
        ({"model_type": "other"}, "does not describe a network"),
        ({"hidden_size": 10**9}, "asks for a network of 2000000002 values, and the weights are 10"),
        ({"num_hidden_layers": 10**6}, "asks for num_hidden_layers of 1000000"),
        ({"use_pretrained_backbone": True}, "fetches weights"),
        ({"hidden_size": 5}, "does not describe a network|do not fit"),
    ],
)
def test_configs_of_the_library_that_do_not_fit(
    changes: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended(monkeypatch)
    with pytest.raises(InputError, match=told) as error:
        load(tiny(tmp_path, **changes))
    assert str(error.value).isprintable()


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="needs transformers: pip install 'reparam[transformers]'")
@pytest.mark.parametrize("size", ["10GB", "8KB"])
def test_real_folders_of_transformers(size: str, tmp_path: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
    net = transformers.ResNetForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "net", max_shard_size=size)
    loaded = load(tmp_path / "net")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(x).logits, net(x).logits)
