"""The errors that reparam raises on purpose, each with the exit code the command line gives it.

A message says what was wrong, where, and how to fix it, in one sentence that needs no traceback.
"""

from __future__ import annotations


def visible(text: str) -> str:
    """`text` with every character that is not printed spelled out: names in files must not steer the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ReparamError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line exits with.

    The message is one printable line, whatever it quotes: names in files, and what libraries say of them.
    """

    exit_code = 4

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


class NotEquivalentError(ReparamError):
    """The two functions differ, or a gate on their difference was missed. Nothing is written."""

    exit_code = 1


class InputError(ReparamError):
    """The user's input or usage is wrong: a bad file, an unknown architecture, a shape that does not fit."""

    exit_code = 2


class UnsafeFileError(InputError):
    """Loading this file could run code that it contains; `--trust` is the only way past."""


class CaptureError(InputError):
    """The model cannot be captured as one graph; the message names the line that prevents it."""


class UnknownSizeError(CaptureError):
    """Something needs a size that is only known once the network has run, such as how many positions `nonzero` finds.

    Rewrites there are refused for it; it ends what cannot do without the size.
    """


class EndedError(CaptureError):
    """The code of a model would have ended the process, or left by an exception that no handler expects."""


class MachineError(ReparamError):
    """The environment failed: disk full, a backend missing, no permission to write."""

    exit_code = 3


class RuleError(ReparamError):
    """A rewrite rule broke its contract. It is a bug in the rule, never in the user's model."""
