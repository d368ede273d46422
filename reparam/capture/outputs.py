"""Which of a network's results are kept: auxiliary heads, and what only training needs, go with what they computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.utils import _pytree as pytree

from reparam.errors import InputError
from reparam.ir import Program, keys_of, parts_of
from reparam.utils import describe_type

from .steps import Captured

_SHOWN = 12  # names in a message


def keep_outputs(captured: Captured, names: Sequence[str] | None) -> Captured:
    """The program without the results that `names` leaves out, and without the calls that only they need.

    names: paths of results: the key or number of a part, `aux`, and parts of parts, `hidden.1`; a key goes before a
        number. None keeps all. One name gives that result by itself; several give a dict of them, by their keys.

    Raises InputError for a name that no result has.
    """
    if names is None:
        return captured
    program = captured.program.copy()
    parts = () if program.out_spec is None else parts_of(program.out_spec)
    known = {path: (leaves, spec) for path, leaves, spec in parts}
    found: dict[str, None] = {}
    for name in _read(names):
        path = None if program.out_spec is None else _path_of(program.out_spec, name)
        if path is None:
            shown = ", ".join([*known][:_SHOWN]) if known else "one alone, which has no name"
            raise InputError(f"no output is called '{name[:60]}'; the network's outputs are {shown}")
        found[path] = None
    wanted = [*found]
    leaves = [i for name in wanted for i in known[name][0]]
    specs = [known[name][1] for name in wanted]
    spec = specs[0] if len(specs) == 1 else pytree.TreeSpec(dict, wanted, specs)
    values = list(program.output.args[0])  # type: ignore[arg-type]
    program.output.args = (tuple(values[i] for i in leaves),)
    _drop_unread(program)
    rest = len(values) - len(set(leaves))
    note = f"kept the outputs {', '.join(wanted)}; {rest} of {len(values)} results go, with what only they need"
    return Captured(replace(program, out_spec=spec, kept=tuple(leaves)), (*captured.notes, note))


def _path_of(spec: pytree.TreeSpec, name: str, above: str = "") -> str | None:
    """The path of a part by keys, where it is named by keys or numbers; None where there is no such part."""
    if spec.is_leaf():
        return None
    children = spec.children()
    numbers = [str(i) for i in range(len(children))]
    keys = keys_of(spec) or numbers
    for labels in (keys, numbers):
        for label, key, child in zip(labels, keys, children, strict=True):
            here = f"{above}.{key}" if above else key
            if name == label:
                return here
            inner = _path_of(child, name[len(label) + 1 :], here) if name.startswith(f"{label}.") else None
            if inner is not None:
                return inner
    return None


def _read(names: Sequence[str]) -> list[str]:
    texts = names.split(",") if isinstance(names, str) else names
    if not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts) or not texts:
        raise InputError(f"outputs is {describe_type(names)}; give the names of outputs, such as ('out',)")
    return list(dict.fromkeys(t.strip() for t in texts))


def _drop_unread(program: Program) -> None:
    for node in reversed(list(program.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            program.erase([node])
