"""What architectures tell of preprocessing and labels, and when it is left out."""

from __future__ import annotations

import torch

from reparam.capture import capture
from reparam.engines import card_of, fitted
from reparam.loading import LoadedModel, load
from support.engine_nets import SHAPE, small


def test_torchvision_tells_what_its_weights_were_trained_with() -> None:
    card = card_of(load(None, arch="torchvision/mobilenet_v2"))
    how = card["preprocessing"]
    assert (how["mean"], how["size"], how["resize"]) == ([0.485, 0.456, 0.406], [224, 224], 256)
    assert how["of"] == "MobileNet_V2_Weights.IMAGENET1K_V1"
    assert len(card["labels"]) == 1000


def test_timm_tells_its_default_configuration() -> None:
    card = card_of(load(None, arch="timm/repvgg_a0"))
    how = card["preprocessing"]
    assert (how["std"], how["size"], how["interpolation"]) == ([0.229, 0.224, 0.225], [224, 224], "bilinear")
    assert how["of"].startswith("repvgg_a0")
    assert how["resize"] == 256
    assert (len(card["labels"]), card["labels"][0]) == (1000, "tench, Tinca tinca")


def test_labels_of_another_number_of_outputs_are_left_out() -> None:
    for spec in ("torchvision/resnet18", "timm/resnet18"):
        card = card_of(load(None, arch=spec, arch_args={"num_classes": 10}))
        assert "labels" not in card
        assert card["preprocessing"]["size"] == [224, 224]


def test_nothing_is_known_of_other_networks() -> None:
    assert card_of(LoadedModel(small())) == {}
    assert card_of(LoadedModel(small(), spec="package.module:factory")) == {}
    assert card_of(LoadedModel(small(), spec="torchvision/no_such_network")) == {}


def test_the_size_follows_the_exported_shape() -> None:
    card = {"preprocessing": {"size": [224, 224], "resize": 256, "mean": [0.5]}, "labels": ["a"]}
    program = capture(small(), (torch.randn(SHAPE),)).program
    assert fitted(card, program) == {
        "preprocessing": {"size": [16, 16], "resize": 18, "mean": [0.5]},
        "labels": ["a"],
    }
    free = capture(small(), (torch.randn(SHAPE),), dynamic=("batch", "height", "width")).program
    assert fitted(card, free) == card
    assert fitted({}, program) == {}
    assert card["preprocessing"] == {"size": [224, 224], "resize": 256, "mean": [0.5]}
