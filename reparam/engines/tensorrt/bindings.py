"""TensorRT's two modules, which have the same names: `tensorrt` for data centres, `tensorrt_rtx` for RTX GPUs.

`tensorrt` builds on the GPU that the engine is for. `tensorrt_rtx` also builds where there is none, for compute
capabilities that are named. What differs besides is asked of the module, never of its version.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from typing import Any

from reparam.errors import InputError, MachineError
from reparam.utils import check_package, gpus

MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
NAME = "reparam"  # what the networks are called, with the precision behind it
TITLES: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def choose_module(runtime: str | None) -> str:
    """The module's name: the one asked for, else what is installed and can build here, `tensorrt` first.

    Raises InputError for an unknown runtime, MachineError with the command that installs what is missing.
    """

    if runtime is not None and runtime not in MODULES:
        raise InputError(f"'{runtime}' is not a runtime of TensorRT; choose from {', '.join(MODULES)}")
    wanted = [MODULES[runtime]] if runtime is not None else list(MODULES.values())
    states = {name: check_package(name) for name in wanted}
    working = [name for name, state in states.items() if state.works]
    if not working:
        problems = ", ".join(f"{s.name} {s.complaint}" for s in states.values())
        advice = states[wanted[-1]].install  # the one whose libraries come from the ordinary index
        raise MachineError(f"TensorRT is not here: {problems}; {advice}")
    able = [name for name in working if name == "tensorrt_rtx" or gpus()]
    return (able or working)[0]


def import_module(name: str) -> Any:
    """The module; it was found by `choose_module`."""
    return importlib.import_module(name)


def read_targets(text: str | None) -> tuple[str, ...]:
    """`"sm89,sm120"` -> ("sm89", "sm120"), empty for None. Raises InputError."""
    if text is None:
        return ()
    found = tuple(dict.fromkeys(t.strip().lower() for t in text.split(",")))
    for name in found:
        if not re.fullmatch(r"sm\d{2,3}", name):
            raise InputError(f"'{name}' is not a compute capability; write it as sm89, or several as sm89,sm120")
    return found


def capabilities(trt: Any) -> dict[str, Any]:
    """What the module builds for by name: compute capability -> its own value; empty where it takes no names."""
    known = getattr(trt, "ComputeCapability", None)
    members: Mapping[str, Any] = known.__members__ if known is not None else {}
    return {name.lower(): value for name, value in members.items() if name.startswith("SM")}


def check_targets(name: str, targets: tuple[str, ...]) -> None:
    """Raises InputError for targets that the module does not build for, or that it needs here and did not get.

    Raises MachineError where it builds only on a GPU and there is none.
    """
    known = capabilities(import_module(name))
    here = gpus()
    if not known and not here:
        raise MachineError(
            f"{TITLES[name]} builds on the GPU that the engine is for, and the driver shows none here; "
            "--runtime rtx builds without one"
        )
    if not known and targets:
        raise InputError(f"{TITLES[name]} builds for the GPU of this machine; leave out --gpu {','.join(targets)}")
    if known and not targets and not here:
        raise InputError(
            f"this machine has no NVIDIA GPU to build for; name those of the engine with --gpu: {', '.join(known)}"
        )
    for target in targets:
        if target not in known:
            raise InputError(f"{TITLES[name]} does not build for {target}; choose from {', '.join(known)}")


@functools.cache
def logger_of(name: str) -> Any:
    """The module's one logger, which keeps messages in place of printing them; see `start_log`.

    TensorRT uses the first logger of a process for everything.
    """
    return _logger(import_module(name))


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # the module is not typed
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return Log()


def start_log(name: str) -> Any:
    """The logger, emptied."""
    log = logger_of(name)
    log.errors.clear()
    log.warnings.clear()
    return log


def reason(messages: list[str]) -> str:
    """TensorRT's first message without function names, codes and places in its sources."""
    text = " ".join(messages[0].split()) if messages else "it gives no reason"
    inner = re.search(r"Error Code \d+: (.*)", text)
    text = inner[1] if inner else text
    while wrapped := re.fullmatch(r"[\w ]+ \((.*)\)|(?:\[[^\]]*\])+ ?(.*)", text):
        text = wrapped[1] or wrapped[2] or ""
    text = re.sub(r"\.? In \w+ at \S+$", "", text)
    return text.strip().rstrip(".") or "it gives no reason"
