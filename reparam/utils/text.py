"""Text for people: what reaches a terminal or a report."""

from __future__ import annotations

from reparam.errors import ReparamError, visible


def one_line(text: str) -> str:
    """`text` on one line, with control characters spelled out: a file's names must not steer the terminal."""
    return visible(" ".join(text.split()))


def visible_lines(text: str) -> str:
    """`text` with its line ends and its indentation, and every other character that is not printed spelled out."""
    return "\n".join(visible(line.replace("\t", "    ")) for line in text.split("\n"))


MOST_OF_ERRORS = 400  # characters that are quoted of an error


def first_line(error: BaseException) -> str:
    """The first line of an error's message that holds anything, else its kind; also where its own code fails.

    Of a long line (some list all sizes), the beginning.
    """
    line = next((line.strip() for line in _message(error).splitlines() if line.strip()), type(error).__name__)
    return line if isinstance(error, ReparamError) or len(line) <= MOST_OF_ERRORS else f"{line[:MOST_OF_ERRORS]}…"


def describe_error(error: BaseException) -> str:
    """`ValueError: the first line of its message`, or its kind alone where it has none."""
    kind, first = type(error).__name__, first_line(error)
    return kind if first == kind else f"{kind}: {first}"


def counted(count: int, what: str) -> str:
    """`1 sample`, `1,024 samples`: how many there are of what takes an s."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def three_digits(value: float) -> str:
    """`0.0356`, `12.5`, `3,442`: what is large is written out, without an exponent; what is tiny has one."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e15 else f"{value:.3g}"


def describe_type(value: object) -> str:
    """`a str`, `a numpy.ndarray`, `None`: what a value is, for a refusal of it."""
    if value is None:
        return "None"
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    name = f"{module}{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def describe_value(value: object) -> str:
    """`a str x`, `None`: a value with its kind, at most 40 characters of it."""
    return "None" if value is None else f"{describe_type(value)} {str(value)[:40]}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # the code of an exception of others
        return ""


def dtype_name(dtype: object) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
