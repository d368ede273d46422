"""What is said where the captured graph is not the model: the axes that are to blame, and where the graph stops."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx

from reparam.capture import Line
from reparam.check.path_error import (
    captured_stops,
    does_not_run,
    other_path,
    path_error,
    shape_of_first,
    where_paths_part,
)
from reparam.errors import CaptureError
from reparam.ir import Feed, Program
from support.helpers import Lambda, program_of

ALL = ("batch", "height", "width")
IMAGE = torch.zeros(2, 1, 4, 5, dtype=torch.float64)


def image(dynamic: tuple[str, ...] = ALL) -> Program:
    return program_of(Lambda(lambda m, x: x * 2), IMAGE.float(), dynamic=dynamic)


def free(program: Program, *axes: int) -> dict[str, int]:
    """Sizes of these axes of the first input, by symbol."""
    return {str(program.inputs[0].shape[a]): 7 for a in axes}


@pytest.mark.parametrize(
    "axes, names",
    [
        ((0,), ("batch",)),
        ((2,), ("height",)),
        ((0, 3), ("width",)),
        ((0, 2, 3), ("height", "width")),
        ((), ()),
    ],
)
def test_the_free_axes_are_named_and_the_batch_only_where_it_is_the_only_one(
    axes: tuple[int, ...], names: tuple[str, ...]
) -> None:
    program = image()
    error = path_error(program, "it is another function", free(program, *axes))
    assert error.axes == names and error.what == "it is another function"
    leave = f"; leave {' and '.join(names)} out of the free axes" if names else ""
    assert str(error) == f"it is another function{leave}"
    assert isinstance(error, CaptureError)


def test_axes_of_several_inputs_are_named_once_and_by_the_rank_of_each() -> None:
    one, two = torch.zeros(2, 1, 4, 4), torch.zeros(2, 6, 4)
    axes = {"inputs_0": {0: "batch", 3: "width"}, "inputs_1": {0: "batch", 1: "length"}}
    program = program_of(Lambda(lambda m, x, y: (x * 2, y * 2)), one, two, dynamic=axes)  # type: ignore[arg-type]
    sizes = {str(n): 9 for s in program.inputs for n in s.shape if isinstance(n, str)}
    assert path_error(program, "", sizes).axes == ("width", "1")
    batch = {str(s.shape[0]): 9 for s in program.inputs}
    assert path_error(program, "", batch).axes == ("batch",)


def test_the_shape_of_the_first_tensor_is_told() -> None:
    assert shape_of_first([3, torch.zeros(2, 3, 8, 9), torch.zeros(1)]) == "2x3x8x9"


def test_an_error_at_another_size_says_at_which_and_how_it_shows() -> None:
    program = image()
    error = other_path(program, [IMAGE], "it computes something else there", free(program, 2))
    assert str(error) == (
        "the model takes another path for inputs of shape 2x1x4x5 than the one that was traced: it computes something "
        "else there; leave height out of the free axes"
    )
    assert error.axes == ("height",)


def test_what_does_not_run_at_all_is_told_by_the_first_line_of_its_error() -> None:
    told = str(does_not_run(RuntimeError("no such size\nand more of it")))
    assert told == "the model does not run on random inputs of the traced size: no such size"


def test_an_error_where_no_size_is_free_blames_no_axis() -> None:
    error = other_path(image(()), [IMAGE], "it computes something else there", {})
    assert error.axes == ()
    assert str(error) == (
        "the model does something else when it runs on inputs of shape 2x1x4x5 than when it is traced with such "
        "inputs: it computes something else there; it may ask whether it is traced, or of what type its inputs and "
        "their sizes are"
    )


def stops_at_five() -> Program:
    """Two calls, of which the second one runs on a width of five alone."""

    def forward(m: object, x: Tensor) -> Tensor:
        y = x * 2
        return y.reshape(x.shape[0], 20)

    return program_of(Lambda(forward), IMAGE.float(), dynamic=("batch",))


def test_the_line_at_which_the_graph_stops_is_named() -> None:
    program = stops_at_five()
    error = captured_stops(program, [torch.zeros(3, 1, 4, 6).double()], free(program, 0))
    found = re.fullmatch(
        r"the model takes another path for inputs of shape 3x1x4x6 than the one that was traced: the captured graph "
        r"does not run there, and stops at (.+):(\d+) `(.+)`; leave batch out of the free axes",
        str(error),
    )
    assert found is not None
    assert found[1] == __file__ and found[3] == "return y.reshape(x.shape[0], 20)"


def test_the_first_call_may_be_the_one_that_stops() -> None:
    def forward(m: object, x: Tensor) -> Tensor:
        return x.reshape(2, 20)  # the first call

    program = program_of(Lambda(forward), IMAGE.float(), dynamic=())
    assert "stops at" in (told := str(captured_stops(program, [torch.zeros(2, 1, 4, 6).double()], {})))
    assert "# the first call" in told


def test_no_line_is_named_where_torch_noted_none_or_the_graph_runs() -> None:
    program = stops_at_five()
    assert "does not run there; leave batch" in str(captured_stops(program, [IMAGE], free(program, 0)))
    for node in program.calls():
        _forget_line(node)
    there = captured_stops(program, [torch.zeros(3, 1, 4, 6).double()], free(program, 0))
    assert str(there).endswith("the captured graph does not run there; leave batch out of the free axes")


def _forget_line(node: fx.Node) -> None:
    node.meta.pop("stack", None)
    node.meta.pop("stack_trace", None)


ONE, TWO, THREE = (
    Line("net.py", n, "forward", code) for n, code in ((3, "y = x * 2"), (5, "y = -y"), (7, "y = y + 1"))
)


def made(copy: int, number: int) -> Line:
    """A line of a module that torch.fx wrote, of which each copy has a file of its own."""
    return Line(f"<eval_with_key>.{copy}", number, "forward", f"y{number} = f(x);  x = None")


@dataclass
class Told:
    """A judge that runs these lines for one row, and those for others."""

    one: list[Line] | None
    other: list[Line] | None

    def lines_where_it_runs(self, values: Feed) -> list[Line] | None:
        return self.one if len(values[0]) == 1 else self.other


@pytest.mark.parametrize(
    "one, other, told",
    [
        ([ONE, TWO], [ONE, THREE], "; with 1x4 it goes on at net.py:5 `y = -y`, with 3x4 at net.py:7 `y = y + 1`"),
        ([ONE], [ONE, THREE], "; with 1x4 it goes on at its end, with 3x4 at net.py:7 `y = y + 1`"),
        ([ONE, TWO], [ONE], "; with 1x4 it goes on at net.py:5 `y = -y`, with 3x4 at its end"),
        (
            [ONE, TWO, THREE],
            [ONE, THREE, TWO],
            "; with 1x4 it goes on at net.py:5 `y = -y`, with 3x4 at net.py:7 `y = y + 1`",
        ),
        ([ONE, TWO], [ONE, TWO], ""),
        ([made(7, 3), made(7, 4)], [made(9, 3), made(9, 4)], ""),
        (
            [made(7, 3), made(7, 4)],
            [made(9, 3), made(9, 5)],
            "; with 1x4 it goes on at `y4 = f(x)`, with 3x4 at `y5 = f(x)`",
        ),
        ([made(7, 3)], [ONE], "; with 1x4 it goes on at `y3 = f(x)`, with 3x4 at net.py:3 `y = x * 2`"),
        ([ONE], None, ""),
        (None, [ONE], ""),
    ],
)
def test_the_lines_are_told_where_paths_part(one: list[Line] | None, other: list[Line] | None, told: str) -> None:
    assert where_paths_part(Told(one, other), [torch.zeros(1, 4)], [torch.zeros(3, 4)]) == told  # type: ignore[arg-type]
