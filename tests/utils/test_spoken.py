"""Options are named as their reader writes them."""

from __future__ import annotations

import pytest

from reparam.errors import InputError
from reparam.utils import checked_call, on_the_command_line
from reparam.utils.spoken import keywords


@pytest.mark.parametrize(
    ("function", "text", "told"),
    [
        ("bench", "give some with --data; or --max-drop 1", "give some with data; or max_drop 1"),
        ("bench", "pass it with --input-shape, for example", "pass it with input_shapes, for example"),
        ("convert", "pass it with --input-shape, for example", "pass it with example inputs, for example"),
        ("export", "give some with --calibrate", "give some with calibration"),
        ("prune", "give some with --calibrate", "give some with data"),
        ("bench", "--runtime is for times alone; see --batch", "where.runtimes is for times alone; see batches"),
        ("convert", "or pass --trust if; --force overwrites it", "or pass trust=True if; force=True overwrites it"),
        ("verify", "a network of your own as --arch module:name", 'a network of your own as arch="module:name"'),
        ("bench", "say it with --mean, --std and --size or --config, or", "say it with preprocessing, or"),
        ("bench", "say how with --mean, --std and --size, or with --config", "say how with preprocessing"),
        ("convert", "a -- b, x--y, ---z and a-b", "a -- b, x--y, ---z and a-b"),
    ],
)
def test_keywords_stand_for_options(function: str, text: str, told: str) -> None:
    assert keywords(text, function) == told


def test_the_command_line_keeps_its_own() -> None:
    @checked_call
    def bench() -> None:
        raise InputError("give some with --data")

    with pytest.raises(InputError, match=r"^give some with data$"):
        bench()
    with on_the_command_line(), pytest.raises(InputError, match=r"^give some with --data$"):
        bench()
