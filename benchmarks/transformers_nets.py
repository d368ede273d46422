"""Small networks of transformers: what sees, what hears, and what detects, each by the name of its architecture."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IMAGE = (3, 64, 64)
VIDEO = (4, 3, 32, 32)  # frames before channels
SOUND = (4000,)
BATCH = 2


@dataclass(frozen=True)
class Net:
    """A class of the library, the arguments of its config, and the shapes of its inputs without the batch.

    kind: the class, after `architecture:` where the library does not export it by itself.
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)


# Arguments that many configs share.
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VIT = BERT | {"image_size": 64, "patch_size": 16}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
RESNET = {"embedding_size": 16, **STAGES}
FILM = BERT | {"image_size": 32, "patch_size": 8, "num_frames": 4}
WAVE = BERT | {
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 8,
}
TAPS = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}

BACKBONE = {"model_type": "resnet", "layer_type": "basic", **RESNET, **TAPS}
SWIN_BACKBONE = {"model_type": "swin", **SWIN, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4], **TAPS}
DINO_BACKBONE = {"model_type": "dinov2", **VIT, "num_hidden_layers": 4, **TAPS, "reshape_hidden_states": False}
POSE_BACKBONE = {"model_type": "vitpose_backbone", **VIT, "image_size": [64, 64], "patch_size": [16, 16]}
RT_BACKBONE = {
    "model_type": "rt_detr_resnet",
    "layer_type": "basic",
    **RESNET,
    "out_features": TAPS["out_features"][1:],
}
SHARED_MASK = {"fpn_feature_size": 32, "mask_feature_size": 32}
MASK2FORMER = {
    "hidden_dim": 32,
    "feature_size": 32,
    "mask_feature_size": 32,
    "encoder_feedforward_dim": 64,
    "dim_feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 8,
}
RT_DETR = {
    "backbone_config": RT_BACKBONE,
    "encoder_in_channels": [32, 48, 64],
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "decoder_in_channels": [32, 32, 32],
    "decoder_layers": 2,
    "decoder_ffn_dim": 64,
    "decoder_attention_heads": 4,
    "num_queries": 10,
}

SEES = {
    "vit": Net("ViTForImageClassification", VIT),
    "vit_msn": Net("ViTMSNForImageClassification", VIT),
    "vit_mae": Net("ViTMAEModel", VIT, (IMAGE, (16,))),
    "ijepa": Net("IJepaForImageClassification", VIT),
    "deit": Net("DeiTForImageClassificationWithTeacher", VIT),
    "beit": Net("BeitForImageClassification", VIT | {"use_relative_position_bias": True}),
    "data2vec_vision": Net("Data2VecVisionForImageClassification", VIT | {"use_shared_relative_position_bias": True}),
    "dinov2": Net("Dinov2ForImageClassification", VIT),
    "dinov2_with_registers": Net("Dinov2WithRegistersForImageClassification", VIT),
    "dinov3_vit": Net("DINOv3ViTModel", VIT),
    "dinov3_convnext": Net("DINOv3ConvNextModel", STAGES),
    "swin": Net("SwinForImageClassification", SWIN),
    "swinv2": Net("Swinv2ForImageClassification", SWIN),
    "convnext": Net("ConvNextForImageClassification", STAGES),
    "convnextv2": Net("ConvNextV2ForImageClassification", STAGES),
    "resnet": Net("ResNetForImageClassification", RESNET),
    "regnet": Net("RegNetForImageClassification", RESNET | {"groups_width": 8}),
    "bit": Net("BitForImageClassification", RESNET | {"num_groups": 8}),
    "hgnet_v2": Net("HGNetV2ForImageClassification"),
    "mobilenet_v1": Net("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}),
    "mobilenet_v2": Net("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}),
    "mobilevit": Net("MobileViTForImageClassification", {"image_size": 64, "hidden_sizes": [32, 48, 64]}),
    "mobilevitv2": Net("MobileViTV2ForImageClassification", {"image_size": 64, "width_multiplier": 0.5}),
    "efficientnet": Net(
        "EfficientNetForImageClassification", {"image_size": 64, "width_coefficient": 0.5, "hidden_dim": 640}
    ),
    "swiftformer": Net("SwiftFormerForImageClassification", {"depths": [1, 1, 2, 1], "embed_dims": [16, 32, 48, 64]}),
    "levit": Net("LevitForImageClassificationWithTeacher", {"image_size": 64, "depths": [1, 1, 1]}),
    "poolformer": Net("PoolFormerForImageClassification", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "cvt": Net("CvtForImageClassification", {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}),
    "pvt": Net(
        "PvtForImageClassification", {"image_size": 64, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}
    ),
    "pvt_v2": Net("PvtV2ForImageClassification", {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}),
    "focalnet": Net("FocalNetForImageClassification", {"embed_dim": 16, "image_size": 64, "depths": [1, 1, 2, 1]}),
    "hiera": Net("HieraForImageClassification", {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": [64, 64]}),
    "textnet": Net("TextNetForImageClassification"),
    "clip": Net("CLIPVisionModelWithProjection", VIT | {"projection_dim": 32}),
    "siglip": Net("SiglipVisionModel", VIT),
    "blip": Net("BlipVisionModel", VIT),
    "aimv2": Net("Aimv2VisionModel", VIT),
    "sam": Net("SamVisionModel", BERT | {"image_size": 64, "global_attn_indexes": [1], "window_size": 2}),
}

PLACES = {
    "segformer": Net(
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32},
    ),
    "dpt": Net(
        "DPTForDepthEstimation",
        VIT
        | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32]}
        | {"fusion_hidden_size": 16},
    ),
    "glpn": Net(
        "GLPNForDepthEstimation",
        {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16},
    ),
    "depth_anything": Net(
        "DepthAnythingForDepthEstimation",
        {"backbone_config": DINO_BACKBONE, "patch_size": 16, "fusion_hidden_size": 16}
        | {"reassemble_hidden_size": 32, "neck_hidden_sizes": [16, 16, 32, 32]},
    ),
    "upernet": Net("UperNetForSemanticSegmentation", {"backbone_config": BACKBONE, "hidden_size": 32}),
    "vitpose": Net(
        "VitPoseForPoseEstimation",
        {"backbone_config": POSE_BACKBONE},
    ),
    "swin2sr": Net(
        "Swin2SRForImageSuperResolution",
        {"image_size": 32, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4},
        ((3, 32, 32),),
    ),
    "superpoint": Net("SuperPointForKeypointDetection"),
    "maskformer": Net(
        "MaskFormerForInstanceSegmentation",
        SHARED_MASK | {"backbone_config": SWIN_BACKBONE, "decoder_config": {"model_type": "detr", **DETR}},
    ),
    "mask2former": Net("Mask2FormerForUniversalSegmentation", MASK2FORMER | {"backbone_config": SWIN_BACKBONE}),
    "detr": Net("DetrForObjectDetection", DETR | {"backbone_config": BACKBONE}),
    "conditional_detr": Net("ConditionalDetrForObjectDetection", DETR | {"backbone_config": BACKBONE}),
    "deformable_detr": Net(
        "DeformableDetrForObjectDetection", DETR | {"decoder_layers": 2} | {"backbone_config": BACKBONE}
    ),
    "rt_detr": Net("RTDetrForObjectDetection", RT_DETR),
    "yolos": Net("YolosForObjectDetection", VIT | {"num_detection_tokens": 10, "image_size": [64, 64]}),
}

FILMS = {
    "videomae": Net("VideoMAEForVideoClassification", FILM, (VIDEO,)),
    "timesformer": Net("TimesformerForVideoClassification", FILM, (VIDEO,)),
    "vivit": Net("VivitForVideoClassification", FILM | {"tubelet_size": [2, 8, 8]}, (VIDEO,)),
}

HEARS = {
    "wav2vec2": Net("Wav2Vec2ForCTC", WAVE, (SOUND,)),
    "wav2vec2_conformer": Net("Wav2Vec2ConformerForCTC", WAVE | {"vocab_size": 32}, (SOUND,)),
    "data2vec_audio": Net("Data2VecAudioForCTC", WAVE | {"conv_pos_kernel_size": 7}, (SOUND,)),
    "hubert": Net("HubertForCTC", WAVE, (SOUND,)),
    "wavlm": Net("WavLMForCTC", WAVE, (SOUND,)),
    "sew": Net("SEWForCTC", WAVE, (SOUND,)),
    "sew_d": Net("SEWDForCTC", WAVE, (SOUND,)),
    "unispeech": Net("UniSpeechForCTC", WAVE, (SOUND,)),
    "unispeech_sat": Net("UniSpeechSatForCTC", WAVE, (SOUND,)),
    "speecht5": Net("speecht5:SpeechT5EncoderWithSpeechPrenet", WAVE, (SOUND,)),
    "hifigan": Net("SpeechT5HifiGan", {"model_in_dim": 16, "upsample_initial_channel": 32}, ((20, 16),)),
    "whisper": Net(
        "whisper:WhisperEncoder",
        {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
        | {"max_source_positions": 50},
        ((80, 100),),
    ),
    "audio_spectrogram_transformer": Net(
        "ASTForAudioClassification", BERT | {"max_length": 64, "num_mel_bins": 32}, ((64, 32),)
    ),
    "encodec": Net("EncodecModel", {"hidden_size": 16, "num_filters": 4, "codebook_size": 16}, ((1, 3200),)),
    "dac": Net("DacModel", {"encoder_hidden_size": 8, "decoder_hidden_size": 64, "n_codebooks": 2}, ((1, 3200),)),
}

GROUPS = {"images": SEES, "places": PLACES, "films": FILMS, "sounds": HEARS}
NETS = {name: net for group in GROUPS.values() for name, net in group.items()}


def family(name: str) -> str:
    """What a network is for: images, places in them, films, sounds."""
    return next(group for group, nets in GROUPS.items() if name in nets)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network with random weights, in evaluation mode, and a batch of random inputs."""
    net = NETS[name]
    module, _, kind = net.kind.rpartition(":")
    place = f"transformers.models.{module}.modeling_{module}" if module else "transformers"
    found = getattr(importlib.import_module(place), kind)
    return found(found.config_class(**net.arguments)).eval(), tuple(torch.rand(BATCH, *s) for s in net.shapes)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("\n".join(NETS))
