"""Which of a file's weights are wanted, and what to type for others of them.

Advice is typed as it stands, in place of what was typed before. So it names both options wherever both count: a prefix
without its key would take the same names out of other weights of the file.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.utils import one_line

MOST_OPTIONS = 6  # in a message
_LONGEST = 200  # characters of a name that is to be typed


@dataclass(frozen=True)
class Want:
    """Which weights of a file are wanted. key: names that lead to them. prefix: of their own names."""

    key: str | None = None
    prefix: str | None = None

    def keys(self, keys: Sequence[str]) -> str:
        """What to type for the weights under other keys, of which the same prefix is wanted: `--key a, or --key b`."""
        behind = "" if self.prefix is None else f" --prefix {_word(self.prefix)}"
        return _either([f"--key {_word(k)}{behind}" for k in keys])

    def prefixes(self, prefixes: Sequence[str]) -> str:
        """What to type for those of the wanted tensors that begin so: `--prefix a., or --prefix b.`."""
        before = "" if self.key is None else f"--key {_word(self.key)} "
        start = "" if self.prefix is None else f"{self.prefix.removesuffix('.')}."
        return _either([f"{before}--prefix {_word(start + p)}" for p in prefixes])


def _either(options: Sequence[str]) -> str:
    return ", or ".join(options[:MOST_OPTIONS])


def _word(key: str) -> str:
    """A key as it is typed in a shell."""
    return shlex.quote(one_line(key)[:_LONGEST])
