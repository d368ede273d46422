"""Emits a program as readable source: `model.py`, ordinary torch modules in forward order, and `model.safetensors`.

The two files run with torch alone. Weights keep the names that they had in the original, wherever they survive, and
what was trainable still is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from reparam.errors import InputError, MachineError
from reparam.ir import Program
from reparam.utils import SOURCE_FILES, dtype_name, refuse_existing, together, writing

from .class_text import source_text
from .expressions import is_name
from .gate import check_source
from .naming import Naming, live_nodes, plan_layout
from .statements import RESERVED


def write_source(
    program: Program, folder: Path, *, class_name: str = "Model", note: str = "", force: bool = False
) -> tuple[Path, Path]:
    """Writes `model.py` and `model.safetensors` into `folder`, which is made when it is missing; returns their paths.

    class_name: of the written module. note: what it was made from, for the comment at the top.

    Raises InputError for files that exist (without `force`), for a bad class name and for a program that torch alone
    cannot run; MachineError when the files cannot be written, and then leaves nothing behind.
    """
    folder = Path(folder)
    if not is_name(class_name) or class_name in RESERVED:
        raise InputError(f"'{class_name}' cannot be the name of the class; choose another identifier")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for {' and '.join(SOURCE_FILES)}")
    for name in SOURCE_FILES:
        refuse_existing(folder / name, force=force)
    live = live_nodes(program)
    naming = plan_layout(program, live)
    text = source_text(program, live, naming, class_name, note)
    check_source(text, class_name)
    tensors = state_dict(program, naming)
    _write_both(folder, text, tensors, force=force)
    return folder / SOURCE_FILES[0], folder / SOURCE_FILES[1]


# ---- weights -----------------------------------------------------------------------------------------------------


def state_dict(program: Program, naming: Naming) -> dict[str, Tensor]:
    """The tensors of the file, each in the dtype that it is emitted in and with storage of its own."""
    tensors: dict[str, Tensor] = {}
    for key, name in naming.names.items():
        constant = program.constants[key]
        value = constant.value.detach().to(device="cpu", dtype=constant.dtype)
        if constant.folded and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"weight '{constant.origin}' does not fit {dtype_name(constant.dtype)}")
        value = value.contiguous()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        tensors[name] = value if whole else value.clone()
    tensors |= {name: torch.zeros((), dtype=torch.int64) for name in naming.extra}
    seen: set[int] = set()
    for name, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        if pointer in seen and value.numel():
            tensors[name] = value.clone()
        seen.add(pointer)
    return tensors


# ---- files -------------------------------------------------------------------------------------------------------


def _write_both(folder: Path, text: str, tensors: dict[str, Tensor], *, force: bool) -> None:
    """Writes both files, which appear together; makes the folder where it is missing."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    code, weights = (folder / name for name in SOURCE_FILES)
    with together() as outputs:
        staged = outputs.stage(code, force=force, make_folder=True)
        with writing(code):
            staged.write_text(text, encoding="utf-8", newline="\n")
        staged = outputs.stage(weights, force=force, make_folder=True)
        try:
            with writing(weights):
                save_file(tensors, staged, metadata={"format": "pt"})
        except SafetensorError as error:
            raise MachineError(f"cannot write {weights}: {error}; nothing was written") from error
