"""Every failure of the command line: one sentence on standard error, the right exit code, nothing half-written."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn

from reparam import conversion
from reparam.cli.outputs import check_folder
from reparam.cli.session import Terminated, explain_failure
from reparam.emit import source
from reparam.errors import InputError, MachineError, NotEquivalentError, RuleError
from reparam.loading import model as load
from support.cli_helpers import TINY, failing_save, prepare_folder, refuse, run

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network and its checkpoint."""
    return prepare_folder(tmp_path, monkeypatch)


# ---- usage and input: 2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--zzz"], "No such option: --zzz; see reparam --help"),
        (["conver"], "No such command 'conver'"),
        (["views", "x.pt"], "No such command 'views'"),
        (["convert", "--zzz"], "No such option: --zzz; see reparam convert --help"),
        (["convert"], "nothing to convert"),
        (["convert", *TINY, "--to", "plainest"], "'plainest' is not"),
        (["convert", *TINY, "--dtype", "int8"], "'int8' is not"),
        (["convert", *TINY, "--seed", "-1"], "--seed"),
        (["convert", *TINY, "--dynamic", "depth"], "--dynamic 'depth' is not an axis"),
        (["convert", *TINY, "--dynamic", "none,batch"], "--dynamic 'none' is not an axis"),
        (["convert", *TINY, "--input-shape", "3,x,8"], "--input-shape '3,x,8' is not a shape"),
        (["convert", *TINY, "--input-shape", "3,0,8"], "is not a shape"),
        (["convert", *TINY, "--input-shape", "3,-8,8"], "is not a shape"),
        (["convert", *TINY, "--input-shape", ""], "the value of --input-shape is empty"),
        (["convert", *TINY, "--input-shape", "9" * 5000], "is not a shape"),
        (["convert", *TINY, "--input-shape", "3,8,8:float32"], "'float32' is no integer dtype; choose from int64"),
        (["convert", *TINY, "--input-shape", "3,8,8:"], "or write 3,8,8 for numbers of the dtype of the weights"),
        (["convert", *TINY, "--input-shape", "8:int64:2"], "'int64:2' is no integer dtype"),
        (["convert", *TINY, "--input-shape", ":int64"], "is not a shape"),
        (["convert", *TINY, "--arch-args", "{"], "--arch-args is not JSON"),
        (["convert", *TINY, "--arch-args", "[1]"], "--arch-args is a JSON list"),
        (["convert", *TINY, "--arch-args", "[" * 100_000], "--arch-args is not JSON"),
        (["convert", *TINY, "--remarks", "failed"], "--remarks 'failed' is not a kind"),
        (["convert", *TINY, "--remarks-filter", "("], "--remarks-filter '(' is not a regular expression"),
        (["convert", *TINY, "--remarks-filter", "{999999999999}"], "is not a regular expression (the repetition"),
        (["convert", *TINY, "-o", "out.onnx"], "name it out.pt2"),
        (["convert", *TINY, "-o", "nowhere/out.pt2"], "nowhere does not exist"),
        (["convert", *TINY, "-o", "tiny.pt/out.pt2"], "tiny.pt is not a folder"),
        (["convert", *TINY, "--source", "tiny.pt"], "tiny.pt is a file"),
        (["convert", *TINY, "--source", "tiny.pt/deep/source"], "tiny.pt is not a folder"),
        (["convert", *TINY, "--json", "tiny.pt", "--force"], "--json tiny.pt would overwrite tiny.pt"),
        (["convert", *TINY, "--json", "tiny-fused.pt2"], "would overwrite tiny-fused.pt2"),
        (["convert", *TINY, "--json", "nowhere/r.json"], "nowhere does not exist"),
        (["explain", *TINY, "--json", "cli_nets.py"], "cli_nets.py exists already"),
        (["convert", "missing.pt"], "there is no file missing.pt"),
        (["convert", "tiny.pt", "--arch", "timm/nothing_like_it"], "is not an architecture of timm"),
        (["convert", "--arch", "cli_nets:broken"], "of the author's own"),
        (["verify", "tiny.pt"], "Missing argument 'B'; see reparam verify --help"),
        (["verify", "-", "tiny.pt"], "name it with --arch-a"),
        (["verify", "tiny.pt", "-", "--arch-a", "cli_nets:tiny"], "name it with --arch-b"),
        (["verify", "tiny.pt", "tiny.pt", "--arch-args-b", "1"], "--arch-args-b is a JSON int"),
        (["verify", "tiny.pt", "tiny.pt", "--trials", "1"], "--trials"),
        (["diff", "tiny.pt", "tiny.pt", "--arch-args-a", "x"], "--arch-args-a is not JSON"),
        (["passes", "fold-batchnorm"], "'fold-batchnorm' is not a rule; the nearest are fold-batch-norm"),
        (["passes", "--json", "tiny.pt"], "tiny.pt exists already"),
    ],
)  # fmt: skip
def test_usage_and_input(words: list[str], expected: str) -> None:
    assert expected in refuse(2, *words)


def test_an_existing_output_is_refused_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(load, "load", fail)
    (folder / "tiny-fused.pt2").write_text("precious")
    (folder / "source").mkdir()
    (folder / "source" / "model.py").write_text("precious")
    assert "tiny-fused.pt2 exists already; --force overwrites it" in refuse(2, "convert", *TINY)
    assert "model.py exists already" in refuse(2, "convert", *TINY, "-o", "o.pt2", "--source", "source")
    assert "source is a folder" in refuse(2, "convert", *TINY, "-o", "o.pt2", "--json", "source")
    assert (folder / "tiny-fused.pt2").read_text() == "precious"


def test_the_input_is_never_the_output(folder: Path) -> None:
    assert run("convert", *TINY).exit_code == 0
    content = (folder / "tiny-fused.pt2").read_bytes()
    (folder / "link.pt2").symlink_to("tiny-fused.pt2")
    for name in ("tiny-fused.pt2", "./tiny-fused.pt2", "link.pt2"):
        assert "is the input" in refuse(2, "convert", "tiny-fused.pt2", "-o", name, "--force")
    assert (folder / "tiny-fused.pt2").read_bytes() == content


def test_a_device_is_no_output(folder: Path) -> None:
    (folder / "null.pt2").symlink_to(os.devnull)
    assert "not an ordinary file" in refuse(2, "convert", *TINY, "-o", "null.pt2", "--force")
    assert Path(os.devnull).is_char_device()


def test_an_input_that_does_not_fit_names_the_option() -> None:
    for shape in ("4,8,8", "3", "3,2,2"):
        message = refuse(2, "convert", *TINY, "--input-shape", shape)
        assert f"does not run on the input shape {shape} (batch 2)" in message
        assert message.endswith("pass the right one with --input-shape")
    message = refuse(2, "convert", *TINY, "--input-shape", "3,8,8:int64")
    assert "does not run on the input shape 3,8,8:int64 (batch 2)" in message
    assert "takes" in refuse(2, "explain", *TINY, "--input-shape", "3,8,8", "--input-shape", "1")
    assert "--input-shape" in refuse(2, "convert", "tiny.pt", "--arch", "cli_nets:shapeless")
    assert "input shape" in refuse(2, "verify", "tiny.pt", "tiny.pt", "--input-shape", "4,8,8",
                                   "--arch-a", "cli_nets:tiny", "--arch-b", "cli_nets:tiny")  # fmt: skip


class Runs:
    """What pickles as a call."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


def test_a_file_that_runs_code_is_refused_without_trust(folder: Path) -> None:
    torch.save({"state_dict": {}, "extra": Runs()}, folder / "unsafe.pt")
    message = refuse(2, "convert", "unsafe.pt", "--arch", "cli_nets:tiny")
    assert "system" in message
    assert "--trust" in message
    assert not (folder / "ran").exists()


def test_a_pickled_module_is_taken_with_trust(folder: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), folder / "module.pt")
    assert "--trust" in refuse(2, "convert", "module.pt", "--input-shape", "3,8,8")
    assert "--input-shape" in refuse(2, "convert", "module.pt", "--trust")
    result = run("convert", "module.pt", "--trust", "--input-shape", "3,8,8")
    assert result.exit_code == 0, result.stderr
    assert "module.pt (pickled module) -> module-fused.pt2" in result.stdout


def test_written_source_is_called_so(folder: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    conversion.convert(model, torch.randn(2, 3, 8, 8)).save_source(folder / "net")
    result = run("explain", "net", "--trust", "--input-shape", "3,8,8")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("net (source), target fused")


# ---- not equivalent: 1 -------------------------------------------------------------------------------------------


def test_a_result_that_differs_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of `convert`: one weight of the result is moved after the rewrites."""
    finalize = conversion.finalize

    def perturbed(program: Any, dtype: Any = None) -> Any:
        final = finalize(program, dtype)
        name = next(n for n, c in final.constants.items() if c.value.dim() == 4)
        moved = final.constants[name].value.detach().clone()
        moved.view(-1)[0] += 1e-3
        final.constants[name] = dataclasses.replace(final.constants[name], value=moved)
        return final

    monkeypatch.setattr(conversion, "finalize", perturbed)
    message = refuse(1, "convert", *TINY, "--json", "report.json")
    assert "less exact than the original" in message


# ---- the environment: 3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_failing_disk(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "save", failing_save(OSError(number, os.strerror(number))))
    message = refuse(3, "convert", *TINY, "--json", "report.json")
    assert os.strerror(number) in message
    assert "nothing was written" in message


def test_a_failing_disk_keeps_the_older_output(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tiny-fused.pt2").write_text("precious")
    monkeypatch.setattr(torch.export, "save", failing_save(OSError(errno.ENOSPC, "No space left on device")))
    refuse(3, "convert", *TINY, "--force")
    assert (folder / "tiny-fused.pt2").read_text() == "precious"


def test_a_source_that_cannot_be_written_takes_the_program_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **options: Any) -> None:
        raise MachineError("cannot write into source: No space left on device; nothing was written")

    monkeypatch.setattr(source, "write_source", fail)
    assert refuse(3, "convert", *TINY, "--source", "source").endswith("nothing was written")


def test_a_folder_without_permission_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *words: False)
    assert "no permission to write in" in refuse(3, "convert", *TINY)
    assert "no permission to write in" in refuse(3, "explain", *TINY, "--json", "report.json")
    with pytest.raises(MachineError, match="no permission"):
        check_folder(Path("deep/source"), force=False)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_no_memory(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "save", failing_save(error))
    assert refuse(3, "convert", *TINY).startswith("not enough memory")


def test_more_memory_than_there_is_for_the_inputs() -> None:
    assert "is too large for this machine" in refuse(2, "convert", *TINY, "--input-shape", "3,9999999,9999999")


def test_a_torch_that_does_not_import() -> None:
    code, message = explain_failure(ImportError("libc10.so: cannot open shared object file", name="torch._C"))
    assert (code, "reparam doctor" in message) == (3, True)


@needs_full
def test_a_full_disk_under_the_report(folder: Path) -> None:
    result = run("explain", *TINY, "--json", "/dev/full")
    assert (result.exit_code, result.stderr) == (
        3,
        "reparam: cannot write the report /dev/full: No space left on device\n",
    )
    converted = run("convert", *TINY, "--quiet", "--json", "/dev/full")
    assert converted.exit_code == 3
    assert converted.stderr.endswith("; tiny-fused.pt2 was written before\n")
    assert (folder / "tiny-fused.pt2").exists()


# ---- internal errors: 4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError("of ours\nsecond line"), RuleError("of ours")])
def test_an_internal_error_asks_for_a_report(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "save", failing_save(error))
    message = refuse(4, "convert", *TINY)
    assert message == f"internal error: {type(error).__name__}: of ours; run again with --debug and report it"
    result = run("convert", *TINY, "--debug")
    assert result.exit_code == 4
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1] == f"reparam: {message}"


def test_debug_shows_the_traceback_of_a_refusal() -> None:
    result = run("convert", "missing.pt", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("reparam: there is no file missing.pt")


def test_the_codes_of_other_exits() -> None:
    assert explain_failure(typer.Exit(1)) == (1, "")
    assert explain_failure(SystemExit(None)) == (0, "")
    assert explain_failure(SystemExit("text")) == (1, "")
    assert explain_failure(NotEquivalentError("they differ")) == (1, "they differ")
    assert explain_failure(InputError("bad")) == (2, "bad")
    assert explain_failure(typer.Abort())[0] == 130
    assert explain_failure(Terminated(15))[0] == 143
    assert explain_failure(FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"))[0] == 3


@pytest.mark.parametrize("text", ["a\nb\r\tc", "\x1b[31mred", "a\x9bb\u202e\ud800", "x\0"])
def test_a_message_is_one_printable_line_wherever_it_is_made(text: str) -> None:
    for kind in (InputError, MachineError, NotEquivalentError, RuleError):
        assert str(kind(f"'{text}' is odd")).isprintable()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_a_folder_that_takes_no_files_is_refused_before_the_work() -> None:
    assert "cannot write in /proc (No such file or directory)" in refuse(3, "convert", *TINY, "-o", "/proc/x.pt2")
