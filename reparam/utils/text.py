"""Text for people: what reaches a terminal or a report."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` on one line, with control characters spelled out: a file's names must not steer the terminal."""
    return _visible(" ".join(text.split()))


def visible_lines(text: str) -> str:
    """`text` with its line ends and its indentation, and every other character that is not printed spelled out."""
    return "\n".join(_visible(line.replace("\t", "    ")) for line in text.split("\n"))


def _visible(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that holds anything, else its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def dtype_name(dtype: object) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
