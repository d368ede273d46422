"""Preprocessing: what is taken of mappings and config files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from reparam.data import Preprocessing, read_config
from reparam.engines import card_of
from reparam.errors import InputError

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TIMM = {**HALF, "input_size": [3, 224, 192], "crop_pct": 0.96, "interpolation": "bicubic", "crop_mode": "center"}
FACE = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_normalize": True, "resample": 3}
IN_BYTES = {"size": 8, "image_mean": 0.5, "image_std": 0.5, "rescale_factor": 1}


def test_a_mapping_of_a_card_is_taken() -> None:
    card = {**HALF, "size": [8, 6], "resize": 9, "interpolation": "nearest-exact", "of": "SomeWeights.V1"}
    assert Preprocessing.of(card) == Preprocessing((0.5,) * 3, (0.5,) * 3, (8, 6), 9, "nearest")
    assert Preprocessing.of({"mean": 0, "std": 1, "size": (4, 4)}) == Preprocessing((0.0,), (1.0,), (4, 4))


def test_what_the_zoo_says_of_an_architecture_is_taken() -> None:
    pytest.importorskip("torchvision")
    model: Any = SimpleNamespace(spec="torchvision/resnet18", module=nn.Linear(1, 1), preprocessing=None, labels=())
    found = Preprocessing.of(card_of(model)["preprocessing"])
    assert found.size == (224, 224) and found.resize == 256 and found.mean[0] == pytest.approx(0.485)


def test_resize_stays_in_proportion() -> None:
    how = Preprocessing((0.5,), (0.5,), (224, 224), 256)
    assert how.fitted(64, 64) == Preprocessing((0.5,), (0.5,), (64, 64), 73)
    assert how.fitted(224, 224) is how
    assert Preprocessing((0.5,), (0.5,), (8, 8)).fitted(4, 6).resize is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "mean has to be 1 or 3 finite numbers"),
        ({"mean": ["a"] * 3}, "mean has to be 1 or 3 finite numbers"),
        ({"mean": [0.5, 0.5]}, "mean of the preprocessing has to be 1 or 3 finite numbers"),
        ({"mean": [float("nan")]}, "mean has to be 1 or 3 finite numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "std of the preprocessing has to be above 0"),
        ({"size": [8]}, r"the size of images has to be \[height, width\]"),
        ({"size": "88"}, r"the size of images has to be \[height, width\]"),
        ({"size": [8.0, 8]}, "the height has to be a positive whole number"),
        ({"size": [0, 8]}, "the height has to be a positive whole number"),
        ({"size": [1 << 20, 1 << 20]}, "which none are"),
        ({"resize": -1}, "resize has to be a positive whole number"),
        ({"interpolation": "random"}, "the interpolation 'random' is not known; use one of nearest, "),
    ],
)
def test_values_that_no_images_have_are_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocessing.of({**HALF, "size": [8, 8]} | change)
    with pytest.raises(InputError, match="has no 'size'"):
        Preprocessing.of(HALF)


def written(path: Path, value: Any) -> Path:
    (path / "config.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return path / "config.json"


@pytest.mark.parametrize(
    ("config", "size", "resize", "interpolation"),
    [
        ({"architecture": "x", "pretrained_cfg": TIMM}, (224, 192), 200, "bicubic"),
        ({**HALF, "input_size": [3, 8, 8]}, (8, 8), 8, "bilinear"),
        ({**FACE, "size": {"height": 8, "width": 6}}, (8, 6), 6, "bicubic"),
        ({**FACE, "size": 8}, (8, 8), 8, "bicubic"),
        ({**FACE, "size": {"shortest_edge": 7}, "crop_pct": 0.875}, (7, 7), 8, "bicubic"),
        ({**FACE, "size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 6}}, (8, 6), 9, "bicubic"),
        ({**FACE, "size": {"shortest_edge": 9}, "crop_size": 8, "do_center_crop": True}, (8, 8), 9, "bicubic"),
        ({**FACE, "size": 9, "crop_size": 8, "do_center_crop": False, "resample": 0}, (9, 9), 9, "nearest"),
    ],
)
def test_configs_of_both_kinds_are_read(
    config: Any, size: Any, resize: int, interpolation: str, tmp_path: Path
) -> None:
    found = read_config(written(tmp_path, config))
    assert (found.size, found.resize, found.interpolation) == (size, resize, interpolation)
    assert found.mean == ((0.1, 0.2, 0.3) if "image_mean" in config else (0.5,) * 3)
    if "image_mean" in config:
        plain = read_config(written(tmp_path, config | {"do_normalize": False}))
        assert (plain.mean, plain.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ('{"size": 8, "size": 9}', "the key 'size' is there twice"),
        ("[" * 100_000, "is not JSON: its lists and mappings nest too deep"),
        ("[]", "holds no mapping"),
        ("{}", "does not say how images are prepared"),
        ({"pretrained_cfg": "x"}, "does not say how images are prepared"),
        ({"pretrained_cfg": {**TIMM, "input_size": [224, 224]}}, r"input_size has to be \[channels, height, width\]"),
        ({"pretrained_cfg": {**TIMM, "crop_pct": 0}}, "crop_pct has to be a number up to 1"),
        ({"pretrained_cfg": {**TIMM, "crop_mode": "squash"}}, "the crop_mode 'squash' is not supported"),
        ('{"input_size": [3, 8, 8], "mean": [NaN], "std": [1]}', "mean has to be 1 or 3 finite numbers"),
        ({**FACE, "size": {"longest_edge": 8}}, "size has to have height and width, or shortest_edge"),
        ({**FACE, "size": 8, "resample": 9}, "resample has to be a number from 0 to 5"),
        (IN_BYTES, "values are not scaled"),
        ({**FACE, "size": 8, "do_rescale": False}, "values are not scaled"),
        ({"image_mean": [0.5], "size": 8}, "image_std has to be 1 or 3 finite numbers"),
    ],
)
def test_other_files_are_refused_in_one_sentence(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_config(written(tmp_path, config))
    assert "config.json" in str(error.value)
    with pytest.raises(InputError, match="there is no file"):
        read_config(tmp_path / "no.json")
    (tmp_path / "large.json").write_bytes(b" " * ((1 << 22) + 1))
    with pytest.raises(InputError, match="too many for a config file"):
        read_config(tmp_path / "large.json")
