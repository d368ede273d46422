"""Which weights of a file are taken: by its keys, by the names of its tensors, and without what wrappers put there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from reparam.errors import InputError
from reparam.loading import load
from reparam.loading.checkpoint import load_checkpoint
from reparam.loading.wanted import Want
from support.checkpoint_nets import SPEC, LazySmall, Small, small_state

STATE, OTHER = small_state(1), small_state(2)


def saved(value: Any, folder: Path) -> Path:
    torch.save(value, folder / "net.pt")
    return folder / "net.pt"


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def taken(path: Path, **which: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    loaded = load(path, arch=SPEC, **which)
    return dict(loaded.module.state_dict()), loaded.notes


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, key",
    [
        ({"state_dict": STATE, "state_dict_ema": OTHER}, "state_dict_ema"),
        ({"model": STATE, "ema": {"module": OTHER, "decay": 0.9}}, "ema"),
        ({"model": STATE, "ema": {"module": OTHER, "decay": 0.9}}, "ema.module"),
        ({"student": STATE, "teacher": OTHER, "epoch": 3}, "teacher"),
        ({"student": STATE, "teacher": under("module.", OTHER)}, "teacher"),
        ({"state_dict": STATE, "a.b": OTHER}, "a.b"),
    ],
)
def test_a_key_takes_the_weights_that_it_leads_to(value: Any, key: str, tmp_path: Path) -> None:
    state, notes = taken(saved(value, tmp_path), key=key)
    assert same(state, OTHER) and notes == ()


@pytest.mark.parametrize(
    "value, told",
    [
        (
            {"state_dict": STATE, "state_dict_ema": OTHER},
            "the weights under 'state_dict' are used; the file also holds state_dict_ema; take it with "
            "--key state_dict_ema",
        ),
        (
            {"model": STATE, "model_ema": OTHER, "teacher": OTHER, "optimizer": {"state": {}, "exp_avg": OTHER}},
            "the weights under 'model' are used; the file also holds model_ema, teacher; take one of these with "
            "--key model_ema, or --key teacher",
        ),
    ],
)
def test_what_was_taken_and_how_to_take_the_others_is_told(value: Any, told: str, tmp_path: Path) -> None:
    state, notes = taken(saved(value, tmp_path))
    assert same(state, STATE) and notes == (told,)


def test_the_only_weights_are_taken_whatever_their_key(tmp_path: Path) -> None:
    value = {"generator": STATE, "dino_loss": {"center": torch.ones(3)}, "optimizer": {"m": torch.ones(9)}, "step": 1}
    state, notes = taken(saved(value, tmp_path))
    assert same(state, STATE) and notes == ()


@pytest.mark.parametrize(
    "value, key, told",
    [
        (
            {"student": STATE, "teacher": OTHER, "step": torch.tensor(3)},
            None,
            'holds several sets of weights: student, teacher; choose one with key="student", or key="teacher"',
        ),
        (
            {"the net": STATE, "nets": {"$(x)": OTHER}},
            None,
            'choose one with key="the net", or key="nets"',
        ),
        ({"state_dict": STATE, "ema": OTHER}, "emma", 'has no \'emma\'; choose from key="state_dict", or key="ema"'),
        (
            {"state_dict": STATE},
            "state_dict.conv",
            'names of tensors begin so, and key="state_dict", prefix="conv." takes these',
        ),
        (STATE, "model", "has no 'model'; it holds one state dict, so leave out key"),
        ({"epoch": 3}, "model", "has no 'model', nor any other weights"),
        ({}, None, "holds no state dict, but an empty mapping; save the model's state_dict"),
        ({"state_dict": STATE, "epoch": 3}, "epoch", "has an int under 'epoch', not weights"),
        ({"state_dict": STATE}, "a\x1b[31m\nb", "has no 'a\\x1b[31m b'; choose from"),
    ],
)
def test_a_choice_is_proposed_with_the_words_to_type(value: Any, key: str | None, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        taken(saved(value, tmp_path), key=key)
    assert told in str(error.value) and str(error.value).isprintable()


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    value: dict[str, Any] = {"epoch": 3}
    value["again"] = {"more": value}
    with pytest.raises(InputError, match="holds no state dict"):
        load_checkpoint(saved(value, tmp_path))


def test_keys_are_for_checkpoints_alone(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.randn(2, 2),))
    torch.export.save(program, tmp_path / "net.pt2")
    for which, told in (({"key": "a"}, "leave out key"), ({"prefix": "a"}, "leave out prefix")):
        with pytest.raises(InputError, match=f"holds a program; {told}"):
            load(tmp_path / "net.pt2", **which)
        with pytest.raises(InputError, match="choose among the weights of a file"):
            load(None, arch=SPEC, **which)


@pytest.mark.parametrize(
    "value, which, instead",
    [
        (
            {"model": STATE, "ema": under("a.", OTHER)},
            {"key": "ema.a"},
            {"key": "ema", "prefix": "a."},
        ),
        (
            {"model": under("net."), "ema": under("a.net.", OTHER)},
            {"key": "ema.a", "prefix": "net"},
            {"key": "ema", "prefix": "a.net"},
        ),
        (
            {"model": under("a."), "ema": {**under("a.", OTHER), **under("b.", OTHER)}},
            {"key": "ema"},
            {"key": "ema", "prefix": "a."},
        ),
        ({**under("x.a.", OTHER), **under("x.b.", OTHER), **under("a.")}, {"prefix": "x"}, {"prefix": "x.a."}),
        ({"net": STATE, "ema": {"net": OTHER}}, {"key": "ema.nets"}, {"key": "ema.net"}),
        ({"model": STATE, "ema": OTHER}, {"key": "ema.module"}, {"key": "ema"}),
        (
            {"g": {**under("model."), **under("ema.", OTHER)}, "d": {"conv.weight": torch.ones(1)}},
            {"prefix": "ema."},
            {"key": "g", "prefix": "ema."},
        ),
    ],
)
def test_advice_that_is_typed_as_it_stands_takes_the_same_weights(
    value: Any, which: dict[str, str], instead: dict[str, str], tmp_path: Path
) -> None:
    path = saved(value, tmp_path)
    with pytest.raises(InputError) as error:
        taken(path, **which)
    assert ", ".join(f'{name}="{word}"' for name, word in instead.items()) in str(error.value)
    assert same(taken(path, **instead)[0], OTHER)


def test_notes_are_typed_as_they_stand_too(tmp_path: Path) -> None:
    value = {"model": {"conv": STATE}, "a": {**under("model."), **under("ema.", OTHER), "criterion.w": torch.ones(1)}}
    _, (note,) = taken(saved(value, tmp_path), key="a")
    assert note.endswith("--key a --prefix ema. takes another copy")
    _, notes = taken(saved({"model": under("net."), "ema": under("net.", OTHER)}, tmp_path), prefix="net.")
    assert notes[0].endswith("take it with --key ema --prefix net.")


def test_a_key_that_would_lead_elsewhere_is_not_proposed(tmp_path: Path) -> None:
    value = {"model": {"module": STATE, "b": OTHER}, "model.b": under("x."), "epoch": 3}
    _, (note,) = taken(saved(value, tmp_path))
    assert note.endswith("the file also holds model.b; take it with --key model.b")


# ---- averages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counters, prefix",
    [
        ({"steps": torch.tensor(3)}, "module."),
        ({"initted": torch.tensor(True), "step": torch.tensor(3)}, "ema_model."),
        ({"n_averaged": torch.tensor(3)}, "averaged."),
    ],
)
def test_counters_of_averages_are_no_part_of_the_network(
    counters: dict[str, Tensor], prefix: str, tmp_path: Path
) -> None:
    path = saved({"state_dict": under("module."), "average": {**counters, **under(prefix, OTHER)}}, tmp_path)
    state, notes = taken(path, key="average")
    assert same(state, OTHER) and notes == ()


@pytest.mark.parametrize("step", [torch.ones(2, dtype=torch.int64), torch.tensor(0.5)])
def test_what_counts_nothing_may_be_a_part_of_the_network(step: Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="beside it step, which may be a part of what it computes"):
        taken(saved({"step": step, **under("module.")}, tmp_path))


def test_a_counter_that_the_network_has_is_its_own(tmp_path: Path) -> None:
    path = saved({"step": torch.tensor(3), "module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}, tmp_path)
    loaded = load(path, arch=f"{__name__}:Counting")
    assert int(loaded.module.step) == 3


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.register_buffer("step", torch.tensor(0))


# ---- names of tensors --------------------------------------------------------------------------------------------


def test_a_prefix_takes_its_tensors_and_counts_the_others(tmp_path: Path) -> None:
    path = saved({"state_dict": {**under("a.b."), **under("c.", OTHER)}}, tmp_path)
    for prefix in ("a.b.", "a.b"):
        state, notes = taken(path, prefix=prefix)
        assert same(state, STATE) and notes == (f"{len(OTHER)} tensors outside of the prefix are not used",)
    assert same(taken(path, prefix="c")[0], OTHER)
    _, notes = taken(saved({**under("a."), "b": torch.ones(1)}, tmp_path), prefix="a")
    assert notes == ("1 tensor outside of the prefix is not used",)
    path = saved({"state_dict": {**under("a.b."), **under("c.", OTHER)}}, tmp_path)
    with pytest.raises(InputError, match=r"begins with 'x\.'; names begin with a\., c\."):
        taken(path, prefix="x")
    with pytest.raises(InputError, match=r"under c, a\.b; choose one with prefix=\"c\.\", or prefix=\"a\.b\.\""):
        taken(path)


def test_a_copy_of_the_network_is_told_with_its_prefix(tmp_path: Path) -> None:
    state, (note,) = taken(saved({**under("model."), **under("ema.", OTHER), "criterion.w": torch.ones(2)}, tmp_path))
    assert same(state, STATE)
    assert note.startswith("the weights under 'model' are used") and note.endswith("--prefix ema. takes another copy")


def test_prefixes_count_before_and_after_wrappers(tmp_path: Path) -> None:
    path = saved({**under("module.net."), **under("module._orig_mod.ema.", OTHER)}, tmp_path)
    assert same(taken(path, prefix="ema")[0], OTHER)
    assert same(taken(path, prefix="module.net")[0], STATE)


# ---- wrappers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapped",
    [
        under("_fsdp_wrapped_module."),
        under("_forward_module.module."),
        under("module._orig_mod._checkpoint_wrapped_module."),
        {k.replace("conv.", "conv._checkpoint_wrapped_module."): v for k, v in STATE.items()},
        {f"_fsdp_wrapped_module.{k.replace('fc.', 'fc._fsdp_wrapped_module.')}": v for k, v in STATE.items()},
        {k.replace("norm.", "norm._orig_mod._fpw_module."): v for k, v in STATE.items()},
    ],
)
def test_what_wrappers_put_into_names_is_removed(wrapped: dict[str, Tensor], tmp_path: Path) -> None:
    assert same(taken(saved({"model": wrapped}, tmp_path))[0], STATE)


def test_a_real_wrapper(tmp_path: Path) -> None:
    net = Small()
    net.load_state_dict(STATE)
    net.conv = checkpoint_wrapper(net.conv)  # type: ignore[assignment]
    compiled = torch.compile(net, backend="eager")
    averaged = torch.optim.swa_utils.AveragedModel(net)
    for state in (compiled.state_dict(), averaged.state_dict(), nn.DataParallel(net).state_dict()):
        assert same(taken(saved(state, tmp_path))[0], STATE)


@pytest.mark.parametrize(
    "state, told",
    [
        ({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "parameters that FSDP has flattened"),
        ({**STATE, **under("_orig_mod.")}, "has 'conv.weight' twice, in a wrapper and outside of it"),
    ],
)
def test_wrappers_that_hide_what_is_meant(state: dict[str, Tensor], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        load_checkpoint(saved(state, tmp_path))


def test_the_names_of_the_file_are_kept_too(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(under("module."), tmp_path), want=Want())
    assert checkpoint.state.keys() == STATE.keys() and checkpoint.raw.keys() == under("module.").keys()


# ---- layers that take their widths from what they see --------------------------------------------------------------


def test_lazy_layers_take_the_shapes_of_the_file(tmp_path: Path) -> None:
    loaded = load(saved(STATE, tmp_path), arch="support.checkpoint_nets:LazySmall")
    assert isinstance(loaded.module, LazySmall) and same(dict(loaded.module.state_dict()), STATE)
    net, x = Small().eval(), torch.randn(2, 3, 8, 8)
    net.load_state_dict(STATE)
    assert torch.equal(loaded.module(x), net(x))
