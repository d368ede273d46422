"""The parts of `model.py` that are the same for every network, and the dtypes that its weights may have."""

from __future__ import annotations

import torch

# What the file of weights calls each dtype.
FILE_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

BLOCK = '''class Block(nn.Module):
    """A part of the network. What the original numbered is read by its number: self.layers[0]."""

    def __getitem__(self, key: int | str) -> nn.Module | Tensor:
        return getattr(self, str(key))

    def __setitem__(self, key: int | str, value: nn.Module | Tensor) -> None:
        setattr(self, str(key), value)'''

ADD = '''

    def add(self, name: str, layer: nn.Module) -> None:
        """Appends a layer under its dotted name; the parts before the last one are nested nn.Sequential."""
        *path, last = name.split(".")
        stage: nn.Sequential = self
        for part in path:
            if part not in stage._modules:
                stage.add_module(part, nn.Sequential())
            stage = stage._modules[part]
        stage.add_module(last, layer)'''

LOAD = '''def load(folder: str | Path | None = None) -> {class_name}:
    """The model with its weights, in evaluation mode. folder: of model.safetensors (default: beside this file)."""
    path = Path(Path(__file__).parent if folder is None else folder) / "model.safetensors"
    with torch.device("meta"):
        model = {class_name}()
    model.load_state_dict(read_weights(path), strict=True, assign=True)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; where the safetensors package is not installed, read by hand."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        dtypes = {{{dtypes}}}
    else:
        return load_file(path)
    tensors = {{}}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            data = bytearray(file.read(end - begin))
            flat = torch.frombuffer(data, dtype=dtypes[entry["dtype"]]) if data else torch.empty(0)
            tensors[name] = flat.to(dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors
'''
