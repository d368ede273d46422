"""The options of the command line and how their texts are read. Every reader raises InputError with an example."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reparam.errors import InputError
from reparam.options import DEFAULTS, MaxPool, Signed
from reparam.utils import AXES, DEFAULT_AXES, INTEGERS, Shape, Shapes, read_named_axis

from .which_weights import ANY, Weights, refuse_missing

if TYPE_CHECKING:
    from reparam.data import Preprocessing

KINDS = ("passed", "missed", "analysis")


class Target(StrEnum):
    """What `--to` offers in this version."""

    fused = "fused"
    plain = "plain"


class ExportTarget(StrEnum):
    """What `export --to` offers."""

    fused = "fused"
    plain = "plain"
    as_is = "as-is"


class Precision(StrEnum):
    """Of an exported file's weights."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


class IoPrecision(StrEnum):
    """Of an exported file's floating inputs and outputs."""

    fp32 = "fp32"
    same = "same"


class Dtype(StrEnum):
    """Of the emitted weights."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float64 = "float64"


MAX_POOL, SIGNED = MaxPool(DEFAULTS.max_pool), Signed(DEFAULTS.signed)
_SHAPE = typer.Option(
    "--input-shape",
    metavar="C,H,W",
    help="Shape of one sample, without the batch; N:int64 for integers; repeat it for several inputs.",
)
_ARCH = "torchvision/NAME, timm/NAME, reparam/NAME or package.module:factory; inferred from the file when left out."
_CARRY = (
    "How --to plain carries channels: auto (fewest multiply-accumulates), grouped, dense, measured (auto or dense, "
    "whichever is faster here) or split=G (partial sums over G slices)."
)

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A checkpoint (.pt, .pth, .safetensors), a folder, a .pt2, or an ONNX file."),
]
First = Annotated[str, typer.Argument(metavar="A", help="A model of any format; - for random weights of --arch-a.")]
Second = Annotated[str, typer.Argument(metavar="B", help="A model of any format; - for random weights of --arch-b.")]
Arch = Annotated[str | None, typer.Option("--arch", metavar="SPEC", help=_ARCH)]
ArchArgs = Annotated[
    str | None,
    typer.Option("--arch-args", metavar="JSON", help="Arguments of --arch, such as '{\"num_classes\": 10}'."),
]
ArchA = Annotated[str | None, typer.Option("--arch-a", metavar="SPEC", help=f"The architecture of A: {_ARCH}")]
ArchB = Annotated[str | None, typer.Option("--arch-b", metavar="SPEC", help=f"The architecture of B: {_ARCH}")]
ArchArgsA = Annotated[str | None, typer.Option("--arch-args-a", metavar="JSON", help="Arguments of --arch-a.")]
ArchArgsB = Annotated[str | None, typer.Option("--arch-args-b", metavar="JSON", help="Arguments of --arch-b.")]
To = Annotated[Target, typer.Option("--to", help="What to rewrite the network into.")]
ExportTo = Annotated[
    ExportTarget, typer.Option("--to", help="What to rewrite the network into first; as-is rewrites nothing.")
]
CarryOption = Annotated[
    str,
    typer.Option("--carry", metavar="WAY", help=_CARRY),
]
MaxPoolOption = Annotated[
    MaxPool, typer.Option("--max-pool", help="For --to plain: relu spells max-pools in blocks as a + relu(b - a).")
]
SignedOption = Annotated[
    Signed,
    typer.Option("--signed", help="For --to plain: relu carries signed channels as relu(x) - relu(-x), no PReLU."),
]
MaxCostOption = Annotated[
    float,
    typer.Option(
        "--max-cost", metavar="TIMES", help="For --to plain: the most that a block may cost; dearer ones stay."
    ),
]
OutputsOption = Annotated[
    str | None,
    typer.Option("--outputs", metavar="NAME,…", help="Results to keep, by key or number; all when left out."),
]
InputShape = Annotated[list[str] | None, _SHAPE]
Dynamic = Annotated[
    str | None,
    typer.Option(
        "--dynamic",
        metavar="AXES",
        help="Axes of free size: batch,height,width, x:1=NAME; or none. Default: batch, where a model leaves it free.",
    ),
]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Dtype of emitted weights; their own by default.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="For random weights and the checks' inputs.")]
Trust = Annotated[bool, typer.Option("--trust", help="Load files that can run code when they are loaded.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - for standard output.")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as one page of HTML, with graphs.")
]
Remarks = Annotated[
    str | None, typer.Option("--remarks", metavar="KINDS", help="List the remarks: passed,missed,analysis.")
]
RemarksFilter = Annotated[
    str | None,
    typer.Option("--remarks-filter", metavar="REGEX", help="Only remarks whose rule, module or message matches."),
]
WriteRecipe = Annotated[
    Path | None,
    typer.Option("--write-recipe", metavar="FILE", help="Write the recipe that repeats this run; apply runs it."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No results in text, no notes, no progress.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite outputs that exist.")]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error, all warnings and the log; check the graph after each rewrite.",
    ),
]

# How samples are given: a verb that takes some has all of these, and `read_preprocessing` reads the last five.
Calibrate = Annotated[
    Path,
    typer.Option(
        "--calibrate",
        metavar="DATA",
        help="Samples: .npy, .npz, .safetensors, .tar; a folder of those or of images.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Samples to judge on: .npy, .npz, .safetensors, .tar; a folder of those or of images.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="Labels of DATA: a .npy of classes or maps, a .txt (a class a line), a folder of maps, or `folders`.",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option("--metric", metavar="MODULE:FUNCTION", help="A metric of your own, in place of top-1 and mIoU."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        min=0,
        help="The most that a model may lose: points of accuracy or, without labels, of agreement.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="For images: a config.json or preprocessor_config.json that says how they become inputs.",
    ),
]
Mean = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="For images: what is subtracted from values in [0, 1].")
]
Std = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="For images: what values are then divided by.")]
Size = Annotated[
    str | None, typer.Option("--size", metavar="H,W", help="For images: the size that they are scaled and cropped to.")
]
Interpolation = Annotated[
    str | None,
    typer.Option("--interpolation", metavar="NAME", help="For images: bilinear, bicubic, nearest or lanczos."),
]

# The texts of --config, --mean, --std, --size and --interpolation, in that order.
ImageOptions = tuple[Path | None, str | None, str | None, str | None, str | None]


@dataclass(frozen=True)
class RemarkChoice:
    """Which remarks are wanted. kinds: empty for the default of each verb."""

    kinds: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None

    def keeps(self, remark: Mapping[str, Any]) -> bool:
        """Whether the remark (as the report's JSON has it) is of a wanted kind and matches the pattern."""
        if self.kinds and remark["kind"] not in self.kinds:
            return False
        texts = (remark["rule"], remark["module"], remark["message"])
        return self.pattern is None or any(self.pattern.search(t) for t in texts)


@dataclass(frozen=True)
class Side:
    """A or B of a comparison. letter: "a" or "b", which ends the names of its options."""

    letter: str
    path: str
    arch: str | None
    arch_args: Mapping[str, Any] | None
    weights: Weights = ANY


def read_shapes(texts: Sequence[str] | None) -> Shapes | None:
    """`3,224,224` or `3x224x224` (`16:int64` for integers), once for each input; None when the option was not given."""
    return tuple(_read_shape(t) for t in texts) if texts else None


def _read_shape(text: str) -> Shape:
    sizes, colon, dtype = (p.strip() for p in text.partition(":"))
    parts = [p.strip() for p in re.split(r"[,x×]", sizes.strip("()[]"))]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", p) for p in parts):
        raise InputError(f"--input-shape '{text}' is not a shape; write positive sizes without the batch: 3,224,224")
    if colon and dtype not in INTEGERS:
        raise InputError(
            f"--input-shape '{text}': '{dtype}' is no integer dtype; choose from {', '.join(INTEGERS)}, or write "
            f"{sizes} for numbers of the dtype of the weights"
        )
    return Shape((int(p) for p in parts), dtype or None)


def read_named(texts: Sequence[str] | None) -> list[tuple[str | None, Path]]:
    """`x.npy` or `name=x.npy`, once for each input: the name, if any, and the file."""
    found: list[tuple[str | None, Path]] = []
    for text in texts or ():
        name, equals, file = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        if named and not (name and file):
            raise InputError(f"--input '{text}' names no file; write x.npy, or name=x.npy")
        found.append((name, Path(file)) if named else (None, Path(text)))
    return found


def read_batches(text: str) -> tuple[int, ...]:
    """`1,8,32` -> those numbers."""
    parts = [p.strip() for p in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,5}", p) for p in parts):
        raise InputError(f"--batch '{text}' names no batch sizes; write 1, or 1,8,32")
    return tuple(dict.fromkeys(int(p) for p in parts))


def read_dynamic(text: str | None) -> tuple[str, ...]:
    """`batch,height,width` -> those names; `none` -> no names; None -> the batch, which nobody asked for."""
    if text is None:
        return DEFAULT_AXES
    names = [n.strip() for n in text.split(",")]
    if names == ["none"]:
        return ()
    if unknown := [n for n in names if n not in AXES and read_named_axis(n) is None]:
        raise InputError(
            f"--dynamic '{unknown[0]}' is not an axis; choose from {', '.join(AXES)}, or none, or write "
            "input:axis=name, such as x:1=sequence"
        )
    return tuple(dict.fromkeys(names))


def read_outputs(text: str | None) -> tuple[str, ...] | None:
    """`out,aux` -> those names."""
    return None if text is None else tuple(n.strip() for n in text.split(","))


def read_arguments(text: str | None, option: str = "--arch-args") -> dict[str, Any] | None:
    """The JSON object of `--arch-args`."""
    if text is None:
        return None
    such = '{"beta": 1.0}' if option == "--options" else '{"num_classes": 10}'
    example = f"write an object, such as '{such}'"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option} is not JSON ({error}); {example}") from error
    if not isinstance(value, dict):
        raise InputError(f"{option} is a JSON {type(value).__name__}, not an object; {example}")
    return value


def read_sides(
    a: tuple[str, str | None, str | None],
    b: tuple[str, str | None, str | None],
    weights: tuple[Weights, Weights] = (ANY, ANY),
) -> tuple[Side, Side]:
    """A and B, each with the texts of its `--arch-x` and `--arch-args-x`, and which of its weights are meant."""
    refuse_missing(a[0], b[0])
    first, second = (
        Side(letter, path, arch, read_arguments(text, f"--arch-args-{letter}"), chosen)
        for letter, (path, arch, text), chosen in zip("ab", (a, b), weights, strict=True)
    )
    return first, second


def read_remarks(kinds: str | None, pattern: str | None) -> RemarkChoice:
    """The texts of `--remarks` and `--remarks-filter`."""
    names = tuple(k.strip() for k in kinds.split(",")) if kinds is not None else ()
    if unknown := [n for n in names if n not in KINDS]:
        raise InputError(f"--remarks '{unknown[0]}' is not a kind of remark; choose from {', '.join(KINDS)}")
    try:
        compiled = re.compile(pattern) if pattern is not None else None
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"--remarks-filter '{pattern}' is not a regular expression ({error})") from error
    return RemarkChoice(names, compiled)


def read_preprocessing(
    card: Mapping[str, Any],
    config: Path | None,
    mean: str | None,
    std: str | None,
    size: str | None,
    interpolation: str | None,
    *,
    data: str | Path | None = None,
) -> Preprocessing | None:
    """How images become inputs: what the config file says, else the card, with what the other options say in its place.

    card: of the model, as `reparam.engines.card_of` gives it. mean, std: one number, or three. size: one number of
    pixels, or height and width; the side that is scaled to before the crop stays in proportion to it. None where
    nothing is known and nothing is given; arrays need none. data: what it is for, where that is one thing.
    """
    from reparam.data import Preprocessing, holds_arrays, read_config

    ways = {"--mean": mean, "--std": std, "--interpolation": interpolation}
    told = [option for option, text in ways.items() if text is not None]
    if told and data is not None and holds_arrays(Path(data)):
        raise InputError(f"{data} holds samples as they go in, and {' and '.join(told)} would change images alone")
    given = {
        **({"mean": _read_numbers(mean, "--mean", "0.485,0.456,0.406")} if mean is not None else {}),
        **({"std": _read_numbers(std, "--std", "0.229,0.224,0.225")} if std is not None else {}),
        **({"interpolation": interpolation} if interpolation is not None else {}),
    }
    sides = None if size is None else _read_size(size)
    known = card.get("preprocessing") if config is None else None
    base = read_config(config) if config is not None else Preprocessing.of(known) if known else None
    if base is None:
        if not given and sides is None:
            return None
        left = [f"--{n}" for n in ("mean", "std", "size") if n not in given and (n != "size" or sides is None)]
        if left:
            raise InputError(f"how this network wants images is not known; give {' and '.join(left)} too, or --config")
        return Preprocessing.of({**given, "size": sides})
    base = base if sides is None else base.fitted(*sides)
    return Preprocessing.of({**asdict(base), **given})


def _read_numbers(text: str, option: str, example: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} '{text}' holds something that is no number; write 0.5, or {example}") from error


def _read_size(text: str) -> tuple[int, int]:
    """`224`, `224,192` or `224x192`."""
    parts = [p.strip() for p in re.split(r"[,x×]", text)]
    if len(parts) > 2 or not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", p) for p in parts):
        raise InputError(f"--size '{text}' is not a size; write pixels: 224, or 224,192 for height and width")
    return int(parts[0]), int(parts[-1])
