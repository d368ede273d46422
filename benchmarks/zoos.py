"""Networks of other libraries: transformers (transformers_nets.py), ultralytics, monai, diffusers, in small sizes.

A network is called `library/name`, as in `monai/unet`. Each is built from its library's own class or file, with random
weights; nothing is fetched. What is not installed has no networks here, and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers_nets
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

BATCH = 2
SLICE, SCAN, PHOTO = (1, 32, 32), (1, 32, 32, 32), (3, 64, 64)  # one channel in two and three axes; an image
STEP = ((),)  # a number for each sample: at which time


@dataclass(frozen=True)
class Net:
    """A class of the library, its arguments, and the shapes of its inputs without the batch."""

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = (SLICE,)


# ---- ultralytics -------------------------------------------------------------------------------------------------

YOLO_IMAGE = 64
YOLO = {
    "detect": (
        *("yolov3-tiny", "yolov5n", "yolov5n-p6", "yolov6n", "yolov8n", "yolov8n-p2", "yolov8n-p6", "yolov8n-ghost"),
        *("yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolo26n-p2", "yolo26n-p6"),
    ),
    "segment": ("yolov8n-seg", "yolo11n-seg", "yolo12n-seg", "yolo26n-seg", "yolo26n-sem"),
    "pose": ("yolov8n-pose", "yolov8n-pose-p6", "yolo11n-pose", "yolo12n-pose", "yolo26n-pose"),
    "classify": ("yolov8n-cls", "yolov8n-cls-resnet50", "yolo11n-cls", "yolo12n-cls", "yolo26n-cls"),
    "obb": ("yolov8n-obb", "yolo11n-obb", "yolo12n-obb", "yolo26n-obb"),
    "others": ("yolov8n-rtdetr", "yolov8n-world", "yolov8n-worldv2", "yoloe-11n", "yolo26n-depth"),
}


def _yolo(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    library = importlib.import_module("ultralytics")
    made = library.RTDETR(f"{name}.yaml") if "rtdetr" in name else library.YOLO(f"{name}.yaml", verbose=False)
    return made.model, (torch.rand(BATCH, 3, YOLO_IMAGE, YOLO_IMAGE),)


# ---- monai -------------------------------------------------------------------------------------------------------

CHANNELS = {"in_channels": 1, "out_channels": 2}
PLANE, SPACE = {"spatial_dims": 2, **CHANNELS}, {"spatial_dims": 3, **CHANNELS}
STEPS = {"channels": (8, 16, 32), "strides": (2, 2, 1)}
HEAD = {"in_shape": SLICE, "channels": (8, 16), "strides": (2, 2)}
MONAI = {
    "segmentation": {
        "unet": Net("UNet", PLANE | STEPS | {"num_res_units": 2}),
        "unet_batch_norm": Net("UNet", PLANE | STEPS | {"num_res_units": 2, "norm": "BATCH"}),
        "unet_3d": Net("UNet", SPACE | STEPS | {"num_res_units": 2, "norm": "BATCH"}, (SCAN,)),
        "attention_unet": Net("AttentionUnet", PLANE | STEPS),
        "basic_unet": Net("BasicUNet", PLANE | {"features": (8, 8, 16, 16, 32, 8)}),
        "basic_unet_plus_plus": Net("BasicUNetPlusPlus", PLANE | {"features": (8, 8, 16, 16, 32, 8)}),
        "segresnet": Net("SegResNet", SPACE | {"blocks_down": (1, 1, 1)} | {"blocks_up": (1, 1)}, (SCAN,)),
        "dynunet": Net(
            "DynUNet", SPACE | {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}, (SCAN,)
        ),
        "unetr": Net(
            "UNETR",
            SPACE | {"img_size": SCAN[1:], "feature_size": 8, "hidden_size": 32, "mlp_dim": 64, "num_heads": 4},
            (SCAN,),
        ),
        "swin_unetr": Net(
            "SwinUNETR",
            PLANE | {"depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4), "feature_size": 12},
            ((1, 64, 64),),
        ),
        "vnet": Net("VNet", {"spatial_dims": 2}),
        "highresnet": Net("HighResNet", PLANE),
        "ahnet": Net("AHNet", PLANE | {"layers": (1, 1, 1, 1)}, ((1, 128, 128),)),
        "flexible_unet": Net("FlexibleUNet", {"in_channels": 3, "out_channels": 2, "backbone": "resnet18"}, (PHOTO,)),
        "mednext": Net("MedNeXt", PLANE | {"init_filters": 8, "blocks_down": (1, 1)} | {"blocks_up": (1, 1)}),
        "quicknat": Net("Quicknat", {"num_classes": 2, "num_filters": 8}),
        "regunet": Net("RegUNet", {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "depth": 2}),
    },
    "classification": {
        "densenet": Net("DenseNet", PLANE | {"init_features": 16, "growth_rate": 8, "block_config": (2, 2)}),
        "resnet18_3d": Net("resnet18", {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2}, (SCAN,)),
        "seresnet50": Net("SEResNet50", {"layers": (1, 1, 1, 1), "spatial_dims": 2, "in_channels": 3}, (PHOTO,)),
        "efficientnet_b0": Net("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False}, (PHOTO,)),
        "vit": Net(
            "ViT",
            {"in_channels": 1, "img_size": SLICE[1:], "patch_size": 8, "hidden_size": 32, "mlp_dim": 64}
            | {"num_layers": 2, "num_heads": 4, "classification": True, "spatial_dims": 2},
        ),
        "classifier": Net("Classifier", HEAD | {"classes": 2}),
        "patch_discriminator": Net("PatchDiscriminator", {"spatial_dims": 2, "channels": 8, "in_channels": 1}),
    },
    "generation": {
        "autoencoder": Net("AutoEncoder", PLANE | STEPS),
        "variational_autoencoder": Net(
            "VarAutoEncoder", {"spatial_dims": 2, "in_shape": SLICE, "out_channels": 1, "latent_size": 4, **STEPS}
        ),
        "autoencoder_kl": Net(
            "AutoencoderKL",
            {"spatial_dims": 2, "num_res_blocks": (1, 1), "channels": (16, 32), "attention_levels": (False, True)}
            | {"norm_num_groups": 8},
        ),
        "vqvae": Net(
            "VQVAE",
            PLANE
            | {"channels": (8, 16), "num_res_layers": 1, "num_res_channels": (8, 16), "embedding_dim": 8}
            | {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2},
        ),
        "diffusion_unet": Net(
            "DiffusionModelUNet",
            PLANE
            | {"num_res_blocks": (1, 1), "channels": (16, 32), "attention_levels": (False, True)}
            | {"norm_num_groups": 8},
            (SLICE, *STEP),
        ),
    },
}

# ---- diffusers ---------------------------------------------------------------------------------------------------

DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
KL = {"down_block_types": DOWN, "up_block_types": UP, "block_out_channels": (16, 32), "norm_num_groups": 8}
TWO = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    **TWO,
}
CONDITION = ((4, 16, 16), *STEP, (7, 16))
DIFFUSERS = {
    "autoencoders": {
        "autoencoder_kl": Net("AutoencoderKL", KL, (PHOTO,)),
        "asymmetric_autoencoder_kl": Net(
            "AsymmetricAutoencoderKL",
            {"down_block_types": DOWN, "up_block_types": UP, "norm_num_groups": 8}
            | {"down_block_out_channels": (16, 32), "up_block_out_channels": (16, 32)},
            (PHOTO,),
        ),
        "autoencoder_tiny": Net("AutoencoderTiny", {}, (PHOTO,)),
        "autoencoder_dc": Net(
            "AutoencoderDC",
            {"latent_channels": 8, "attention_head_dim": 8}
            | {f"{way}_block_out_channels": (16, 32) for way in ("encoder", "decoder")}
            | {f"{way}_layers_per_block": (1, 1) for way in ("encoder", "decoder")}
            | {f"{way}_block_types": ("ResBlock", "EfficientViTBlock") for way in ("encoder", "decoder")}
            | {f"{way}_qkv_multiscales": ((), (5,)) for way in ("encoder", "decoder")}
            | {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"},
            (PHOTO,),
        ),
        "vq_model": Net("VQModel", KL | {"num_vq_embeddings": 16}, (PHOTO,)),
        "autoencoder_oobleck": Net(
            "AutoencoderOobleck",
            {
                "encoder_hidden_size": 8,
                "downsampling_ratios": [2, 4],
                "channel_multiples": [1, 2],
                "decoder_channels": 8,
            }
            | {"decoder_input_channels": 4},
            ((2, 256),),
        ),
    },
    "unets": {
        "unet_2d": Net(
            "UNet2DModel",
            {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
            | {"attention_head_dim": 8, **TWO},
            ((3, 16, 16), *STEP),
        ),
        "unet_2d_condition": Net(
            "UNet2DConditionModel", CROSS | {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}, CONDITION
        ),
        "unet_1d": Net("UNet1DModel", {"block_out_channels": (16, 32, 32), "extra_in_channels": 32}, ((2, 64), *STEP)),
        "controlnet": Net("ControlNetModel", CROSS, (*CONDITION, (3, 128, 128))),
        "dit": Net(
            "DiTTransformer2DModel",
            {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "sample_size": 16},
            ((4, 16, 16), *STEP, ()),
        ),
    },
}

# ---- all of them -------------------------------------------------------------------------------------------------

LIBRARIES: Mapping[str, Mapping[str, Any]] = {
    "transformers": transformers_nets.GROUPS,
    "ultralytics": YOLO,
    "monai": MONAI,
    "diffusers": DIFFUSERS,
}
PLACES = {"monai": "monai.networks.nets", "diffusers": "diffusers"}
TABLES = {library: {k: v for group in LIBRARIES[library].values() for k, v in group.items()} for library in PLACES}


def names(library: str) -> list[str]:
    """The networks of a library, `library/name`."""
    return [f"{library}/{name}" for group in LIBRARIES[library].values() for name in group]


def chosen(given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The networks that are named; the name of a library stands for all of its networks in `known`. None names all.

    Raises InputError for the name of a library that is not installed.
    """
    for library in given:
        if library in LIBRARIES and (why := missing(library)):
            raise InputError(why)
    return [n for g in given for n in (known if "/" not in g else [g]) if n == g or n.startswith(f"{g}/")] or [*known]


def family(arch: str) -> str:
    """The group that a network is listed in."""
    library, _, name = arch.partition("/")
    return next(group for group, nets in LIBRARIES[library].items() if name in nets)


def missing(library: str) -> str:
    """Why a library's networks cannot be built here; "" where they can."""
    with _apart():
        try:
            importlib.import_module(PLACES.get(library, library))
        except Exception as error:  # of whatever the library needs in its turn
            return f"{library} does not import ({type(error).__name__}: {error})".splitlines()[0]
    return ""


def build(arch: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network with random weights, in evaluation mode, and a batch of random inputs.

    Raises KeyError for a name that is not listed, and what the library raises.
    """
    library, _, name = arch.partition("/")
    register_missing_torchvision_ops()
    with _apart():
        torch.manual_seed(0)
        module, inputs = _builder(library)(name)
    return module.eval(), inputs


def _builder(library: str) -> Callable[[str], tuple[nn.Module, tuple[Tensor, ...]]]:
    if library == "transformers":
        return transformers_nets.build
    return _yolo if library == "ultralytics" else lambda name: _of_table(library, name)


def _of_table(library: str, name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    net = TABLES[library][name]
    module = getattr(importlib.import_module(PLACES[library]), net.kind)(**net.arguments)
    return module, tuple(_values(shape) for shape in net.shapes)


def _values(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(BATCH, *shape) if shape else torch.arange(1, BATCH + 1)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Within it no library asks a hub, and ultralytics keeps its settings in a folder that goes."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(offline | {"YOLO_CONFIG_DIR": str(Path(folder))})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=list(LIBRARIES), help="whose networks are listed")
    for chosen in parser.parse_args().libraries:
        print(missing(chosen) or "\n".join(names(chosen)))
