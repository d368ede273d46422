"""torchvision beside a CPU build of torch: the operators that it looks up when it is imported."""

from __future__ import annotations

import importlib.util
import os

import torch

_LIBRARIES: list[torch.library.Library] = []  # a declared operator lives as long as its library object


def register_missing_torchvision_ops() -> None:
    """Declares torchvision's `nms` and `qnms` beside a CPU-only torch whose torchvision cannot load its own library.

    Call it before torchvision is first imported. It does nothing with a CUDA build of torch, where torchvision is not
    installed, where its library loads, and when called again.
    """
    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    try:
        torch.ops.load_library(os.path.join(found.submodule_search_locations[0], "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)


def declared_for_torchvision() -> bool:
    """Whether the operators had to be declared, since torchvision's library does not load beside this torch."""
    return bool(_LIBRARIES)
