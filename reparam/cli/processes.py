"""Several processes of one command, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from reparam.errors import InputError, MachineError
from reparam.utils import first_line

MOST = 4096


def place_in_group() -> tuple[int, int]:
    """The number of this process and how many there are, from the environment that torchrun sets; (0, 1) alone.

    A machine of a cluster may have such numbers without torchrun: a command that is run there is alone, and does all.

    Raises InputError for numbers that are none.
    """
    given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    try:
        rank, size = map(int, given)
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size <= MOST:
        raise InputError(f"RANK is {given[0][:20]!r} and WORLD_SIZE {given[1][:20]!r} in the environment; use torchrun")
    return rank, size


@contextmanager
def process_group(size: int) -> Iterator[None]:
    """A process group of torch.distributed on the CPU, where there are several processes.

    Raises MachineError where they do not meet, and where another one ends before this one is done.
    """
    if size == 1:
        yield
        return
    from torch import distributed as dist

    if not dist.is_available():
        raise MachineError("this torch has no torch.distributed, so that several processes cannot work together")
    # Defaults of its functions hold the group there is when it is first imported, and the threads of a group that is
    # still held end with the interpreter, which may abort. torch.export imports it.
    import torch.distributed.nn.functional  # noqa: F401

    try:
        dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise MachineError(f"the {size} processes do not meet: {first_line(error)}") from error
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise MachineError("another process of the group ended before this one was done") from error
        raise
    finally:
        dist.destroy_process_group()
