"""Networks of torchvision with arguments that timm's have, and the shapes of their inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from reparam.utils import Shapes

IMAGE_CHANNELS = 3


def adaptable(builder: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """torchvision's builder with two arguments that timm's have: `in_chans`, and `num_classes` 0 for features alone.

    kind: of network, as torchvision sorts them; detectors and optical flow are left as they are.
    """
    if kind in ("detection", "optical_flow", "quantization"):
        return builder

    @functools.wraps(builder)
    def build(*, in_chans: int = IMAGE_CHANNELS, **kwargs: Any) -> Any:
        headless = kwargs.get("num_classes") == 0
        if headless:
            del kwargs["num_classes"]
        module = builder(**kwargs)
        if in_chans != IMAGE_CHANNELS:
            _replace_first_conv(module, in_chans)
        if headless:
            _drop_last_linear(module)
        return module

    return build


def _replace_first_conv(module: nn.Module, in_chans: int) -> None:
    """The first convolution is made anew for so many channels."""
    kinds = (nn.Conv2d, nn.Conv3d)
    path, conv = next(((n, m) for n, m in module.named_modules() if isinstance(m, kinds)), ("", None))
    if conv is None or conv.in_channels != IMAGE_CHANNELS or conv.groups != 1:
        raise ValueError("in_chans needs a network whose first convolution reads an image")
    geometry = {n: getattr(conv, n) for n in ("stride", "padding", "dilation", "padding_mode")}
    new = type(conv)(in_chans, conv.out_channels, conv.kernel_size, bias=conv.bias is not None, **geometry)  # type: ignore[arg-type]
    module.set_submodule(path, new)


def _drop_last_linear(module: nn.Module) -> None:
    """What the network gives are the features that its last linear layer would read."""
    path = next((n for n, m in reversed(list(module.named_modules())) if isinstance(m, nn.Linear)), None)
    if path is None:
        raise ValueError("num_classes 0 needs a network whose last layer is linear")
    module.set_submodule(path, nn.Identity())


def torchvision_shapes(
    models: Any, builder: Any, channels: int, weights: Any = None, module: nn.Module | None = None
) -> Shapes | None:
    """The shapes of a network's inputs. weights: that it is for; the first published ones unless told.

    module: the network, which knows its size where it takes no other, whatever weights there are.
    """
    own = getattr(module, "image_size", None)
    if isinstance(own, int):
        return ((channels, own, own),)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    if kind in ("detection", "optical_flow"):  # lists of images, pairs of images
        return None
    try:
        preset = (weights or next(iter(models.get_model_weights(builder)))).transforms()
    except (StopIteration, ValueError):
        return ((channels, 224, 224),)
    crop = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None) or [224]
    height, width = crop[0], crop[-1]
    return ((channels, 16, height, width),) if kind == "video" else ((channels, height, width),)
