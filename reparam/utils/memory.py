"""How much memory there is, and how its end is told. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from reparam.errors import MachineError, ReparamError

from .text import first_line

_OUT_OF_MEMORY = (
    *("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory"),
    *("Failed to allocate memory", "bad_alloc", "bad allocation"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch says so in a RuntimeError."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)


@contextlib.contextmanager
def memory_told(doing: str = "") -> Iterator[None]:
    """Raises MachineError where memory runs out in the block. doing: what is done there, such as "running the model".

    What a library says then is a RuntimeError in its own words, as it is for inputs that do not fit.
    """
    try:
        yield
    except ReparamError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        when = f" while {doing}" if doing else ""
        text = first_line(error) if str(error) else ""
        raise MachineError(f"not enough memory{when}{f' ({text})' if text else ''}") from error


def memory_size() -> int | None:
    """The bytes of memory that this process may have at most, where the system tells."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # of a container
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found, default=None)


def memory_available() -> int | None:
    """The bytes of memory that are left for this process, where the system tells."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        found.append(left_in_container(Path("/sys/fs/cgroup")))
    return min(found, default=memory_size())


def left_in_container(group: Path) -> int:
    """The bytes that a control group has left; pages of files, which it also counts, give way.

    group: its folder. Raises OSError and ValueError where it tells nothing, or has no limit.
    """
    most, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    pages = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    files = sum(int(pages.get(kind, 0)) for kind in ("active_file", "inactive_file"))
    return max(0, most - used + files)
