"""Options are named as their reader writes them."""

from __future__ import annotations

import pytest

from reparam.errors import InputError
from reparam.utils import checked_call, on_the_command_line
from reparam.utils.spoken import keywords


@pytest.mark.parametrize(
    ("call", "text", "told"),
    [
        ("bench", "give some with --data; or --max-drop 1", "give some with data; or max_drop 1"),
        ("bench", "pass it with --input-shape, for example", "pass it with input_shapes, for example"),
        ("convert", "pass it with --input-shape, for example", "pass it with example inputs, for example"),
        ("export", "give some with --calibrate", "give some with calibration"),
        ("export", "--force overwrites it", "options=ExportOptions(force=True) overwrites it"),
        ("prune", "give some with --calibrate", "give some with data"),
        ("bench", "--runtime is for times alone; see --batch", "where.runtimes is for times alone; see batches"),
        (
            "convert(trust)",
            "or pass --trust if; --force overwrites it",
            "or pass trust=True if; force=True overwrites it",
        ),
        (
            "prune",
            "give it with --arch, or pass --trust",
            "give it with arch of reparam.load, or pass trust=True of reparam.load",
        ),
        ("load(arch, arch_args)", "it fits with --arch-args '{\"a\": true}'", "it fits with arch_args={'a': True}"),
        ("verify", "a network of your own as --arch module:name", 'a network of your own as arch="module:name"'),
        ("bench", "say it with --mean, --std and --size or --config, or", "say it with preprocessing, or"),
        ("bench", "say how with --mean, --std and --size, or with --config", "say how with preprocessing"),
        ("load(key)", "with --key 'the net', or --key nets", 'with key="the net", or key="nets"'),
        (
            "load(key, prefix)",
            "with --key 'the net' --prefix a., or --key b --prefix a.",
            'with key="the net", prefix="a.", or key="b", prefix="a."',
        ),
        ("load(key, prefix)", "--key and --prefix choose among", "key and prefix choose among"),
        ("convert", "a -- b, x--y, ---z and a-b", "a -- b, x--y, ---z and a-b"),
    ],
)
def test_keywords_stand_for_options(call: str, text: str, told: str) -> None:
    function, _, parameters = call.partition("(")
    assert keywords(text, function, parameters.removesuffix(")").split(", ")) == told


def test_the_function_that_was_called_words_the_error() -> None:
    @checked_call
    def load(*, arch: str = "") -> None:
        raise InputError(f"give {arch} with --arch")

    @checked_call
    def prune() -> None:
        load(arch="it")

    with pytest.raises(InputError, match=r"^give it with arch$"):
        load(arch="it")
    with pytest.raises(InputError, match=r"^give it with arch of reparam\.load$"):
        prune()


def test_the_command_line_keeps_its_own() -> None:
    @checked_call
    def bench() -> None:
        raise InputError("give some with --data")

    with pytest.raises(InputError, match=r"^give some with data$"):
        bench()
    with on_the_command_line(), pytest.raises(InputError, match=r"^give some with --data$"):
        bench()
