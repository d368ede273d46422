"""What the arguments of an emitted program are called."""

from __future__ import annotations

from reparam.ir import Program
from reparam.utils import unused_name


def parameter_names(program: Program) -> list[str]:
    """One name for each argument of the original, nested ones included; keyword arguments keep their own."""
    targets = iter([str(n.target) for n in program.placeholders])
    if program.in_spec is None:
        return list(targets)
    args, kwargs = program.in_spec.children()
    names: list[str] = []
    for i, spec in enumerate(args.children()):
        leaves = [next(targets) for _ in range(spec.num_leaves)]
        name = leaves[0] if spec.is_leaf() else f"arg{i}"
        names.append(unused_name(name, {*names, *kwargs.context}))
    return [*names, *kwargs.context]
