"""Loggers of libraries that print what our one sentence tells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

FAKE_TENSORS = "torch._subclasses.fake_tensor"
SYMBOLIC_SHAPES = "torch.fx.experimental.symbolic_shapes"


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """A library logs a traceback before it raises. names: of its loggers, which say nothing within the block."""
    loggers = [logging.getLogger(n) for n in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
