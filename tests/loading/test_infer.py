"""Architecture inference: the name proposes, keys and shapes decide, twins are listed, near misses are explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.loading import build_architecture, infer
from reparam.loading.infer import check_architecture, infer_architecture, same_function, shapes_of
from reparam.loading.zoo import meta_state
from support.choice import mostly_in_sweeps


def state_of(spec: str, arch_args: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """The state dict of an architecture, shapes only."""
    return {key: torch.empty(shape, device="meta") for key, shape in meta_state(spec, arch_args).items()}


NAMED = (
    ("torchvision/resnet50", "resnet50.pt"),
    ("torchvision/resnet50", "/data/resnet50-0676ba61.pth"),
    ("torchvision/resnet50", "ResNet-50_best.pth.tar"),
    ("torchvision/mobilenet_v3_small", "mobilenet_v3_small.safetensors"),
    ("timm/repvgg_a0", "repvgg_a0.rvgg_in1k.bin"),
    ("timm/repvgg_a0", "hub/repvgg_a0.rvgg_in1k/pytorch_model.bin"),
    ("timm/tf_efficientnet_b0", "tf_efficientnet_b0_aa-827b6e33.pth"),
    ("timm/efficientnet_b0", "efficientnet_b0.pt"),
    ("torchvision/efficientnet_b0", "efficientnet_b0.pt"),
    ("timm/test_resnet", "test_resnet.pt"),
    ("torchvision/fcn_resnet50", "fcn_resnet50_coco-1167a1af.pth"),
)


@pytest.mark.parametrize("spec, file_name", mostly_in_sweeps(NAMED, *NAMED[:8:2], *NAMED[8:10]))
def test_the_files_name_proposes(spec: str, file_name: str) -> None:
    assert infer_architecture(state_of(spec), file_name).spec == spec


@pytest.mark.parametrize("spec", ["torchvision/resnet18", "torchvision/vgg11_bn", "timm/repvgg_a0"])
def test_the_keys_propose_where_the_name_says_nothing(spec: str) -> None:
    assert infer_architecture(state_of(spec), "final.pt").spec == spec


def test_keys_and_shapes_decide_against_a_wrong_name() -> None:
    assert infer_architecture(state_of("torchvision/resnet34"), "resnet18.pt").spec == "torchvision/resnet34"


@pytest.mark.parametrize(
    "told, spec, twin",
    [
        (("resnet10t",), "timm/resnet10t", ""),
        (("no network", "timm/ResNet10t.c3_in1k"), "timm/resnet10t", ""),
        (("timm/resnet50",), "timm/resnet50", "torchvision/resnet50"),
        (("resnet50",), "torchvision/resnet50", "timm/resnet50"),
    ],
)
def test_what_the_file_says_is_tried_first(told: tuple[str, ...], spec: str, twin: str) -> None:
    found = infer_architecture(state_of(spec), "resnet18.pt", told)
    assert found.spec == spec and found.told and twin in ("", *found.also)


def test_keys_and_shapes_decide_against_what_the_file_says() -> None:
    found = infer_architecture(state_of("torchvision/resnet34"), "x.pt", ("resnet18", "vgg11"))
    assert found.spec == "torchvision/resnet34" and not found.told


def test_every_twin_is_listed() -> None:
    found = infer_architecture(state_of("torchvision/resnet50"), "resnet50.pt")
    assert set(found.also) == {"timm/resnet50", "timm/resnetaa50", "timm/resnetblur50"}
    found = infer_architecture(state_of("timm/efficientnet_b0"), "efficientnet_b0.pt")
    assert set(found.also) == {"timm/tf_efficientnet_b0", "timm/efficientnet_blur_b0"}
    assert infer_architecture(state_of("timm/test_resnet"), "test_resnet.pt").also == ()


@pytest.mark.parametrize(
    "spec, arch_args",
    [
        ("torchvision/resnet18", {"num_classes": 10}),
        ("torchvision/mobilenet_v3_small", {"num_classes": 3}),
        ("timm/test_resnet", {"num_classes": 10}),
        ("timm/test_vit", {"num_classes": 2}),
        ("torchvision/googlenet", {"aux_logits": False}),
        ("torchvision/googlenet", {"num_classes": 5}),
        ("torchvision/inception_v3", {}),
    ],
)
def test_classes_and_auxiliary_heads_are_read_from_the_shapes(spec: str, arch_args: dict[str, Any]) -> None:
    found = infer_architecture(state_of(spec, arch_args), f"{spec.partition('/')[2]}.pt")
    assert (found.spec, found.arch_args) == (spec, arch_args)


def test_a_prefix_that_all_keys_share_does_not_matter() -> None:
    state = {f"model.{key}": value for key, value in state_of("timm/test_resnet").items()}
    assert infer_architecture(state, "test_resnet.pt").spec == "timm/test_resnet"


def test_counters_of_batches_may_be_missing() -> None:
    state = {k: v for k, v in state_of("torchvision/resnet18").items() if not k.endswith("num_batches_tracked")}
    assert infer_architecture(state, "resnet18.pt").spec == "torchvision/resnet18"


def test_when_nothing_fits_the_nearest_three_and_their_keys_are_listed() -> None:
    state = state_of("torchvision/resnet18")
    del state["fc.weight"]
    state["extra"] = torch.empty(2, device="meta")
    state["conv1.weight"] = torch.empty((64, 4, 7, 7), device="meta")
    with pytest.raises(InputError) as error:
        infer_architecture(state, "resnet18.pt")
    message = str(error.value)
    assert "the architecture of resnet18.pt is not among the 40 candidates" in message
    assert "torchvision/resnet18: missing fc.weight; unexpected extra;" in message
    assert "wrong shape conv1.weight (64, 3, 7, 7), the file has (64, 4, 7, 7)" in message
    assert message.count(": missing") == 3
    assert "--arch" in message


def test_a_network_of_ones_own_is_compared_with_nothing_that_is_far_from_it() -> None:
    state = {f"part{i}.weight": torch.empty((4, 4), device="meta") for i in range(6)}
    with pytest.raises(InputError) as error:
        infer_architecture(state, "mine.pt")
    message = str(error.value)
    assert message.endswith("a network of your own as --arch module:name. None of them has half of its keys")


def test_a_state_without_tensors_is_an_error() -> None:
    with pytest.raises(InputError, match="holds no tensors"):
        infer_architecture({}, "resnet18.pt")


def test_a_fit_describes_what_differs() -> None:
    found = {**meta_state("timm/test_resnet"), "extra": (1,)}
    del found["conv1.0.weight"]
    fit = check_architecture("timm/test_resnet", found)
    assert (fit.fits, fit.distance) == (False, 2)
    assert fit.describe() == "missing conv1.0.weight; unexpected extra"
    assert check_architecture("timm/test_resnet", meta_state("timm/test_resnet")).describe() == "fits"


def test_given_arguments_are_not_overruled() -> None:
    found = meta_state("timm/test_resnet", {"num_classes": 10})
    assert check_architecture("timm/test_resnet", found).arch_args == {"num_classes": 10}
    fit = check_architecture("timm/test_resnet", found, {"num_classes": 5})
    assert not fit.fits
    assert fit.arch_args == {"num_classes": 5}


def with_weights_of(module: nn.Module, other: nn.Module) -> nn.Module:
    other.load_state_dict(module.state_dict())
    return other.eval()


def test_the_same_network_from_two_zoos_is_recognised() -> None:
    ours = build_architecture("torchvision/resnet18").module
    theirs = with_weights_of(ours, build_architecture("timm/resnet18").module)
    assert same_function(ours, theirs, ((3, 64, 64),))


@pytest.mark.parametrize(
    "one, other",
    [("timm/resnet18", "timm/resnetblur18"), ("timm/efficientnet_b0", "timm/tf_efficientnet_b0")],
)
def test_twins_of_different_function_are_told_apart(one: str, other: str) -> None:
    ours = build_architecture(one).module
    theirs = with_weights_of(ours, build_architecture(other).module)
    assert shapes_of(ours.state_dict()) == shapes_of(theirs.state_dict())
    assert not same_function(ours, theirs, ((3, 64, 64),))


def test_an_epsilon_that_no_output_shows_is_told_apart() -> None:
    one, other = (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, eps=e)) for e in (1e-6, 1.1e-6))
    assert not same_function(one, with_weights_of(one, other), ((4,),))


def test_nothing_is_known_without_an_input_that_runs() -> None:
    one = nn.Linear(4, 4)
    assert not same_function(one, one, None)
    assert not same_function(one, one, ((5,),))
    assert same_function(one, one, ((4,),))


def test_names_with_letters_put_in_come_first_among_relatives() -> None:
    names = [n for n in infer._names({"conv1.weight": (1,)}) if "resne" in n]
    assert {"timm/resnet50", "timm/resnetaa50", "timm/resnetblur50"} <= set(
        infer._relatives("torchvision/resnet50", names)[: infer.RELATED]
    )
