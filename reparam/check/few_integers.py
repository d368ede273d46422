"""Inputs of integers of which a network does not take all: those stay 0 and 1 in every check."""

from __future__ import annotations

from dataclasses import replace

import torch

from reparam.ir import Feed, Program, drawn_inputs, evaluate, evaluate_where_it_runs, feed, is_whole, typed

from .values import all_finite


def with_few_integers(program: Program, seed: int = 0) -> Program:
    """The program, with 0 and 1 for its inputs of 8 and 16 bits where it does not run on all integers of their dtype.

    Nor may its outputs be infinite or NaN: it may take the logarithm of lengths, or multiply masks by -3e38. It is run
    on random integers and on the least and the largest of each dtype, in float64 and in its own dtype.
    """
    drawn = {s.name: s for s in drawn_inputs(program) if is_whole(s)}
    if not drawn:
        return program
    generator = torch.Generator().manual_seed(seed)
    values = feed(program, program.traced_sizes, generator)
    ends: tuple[Feed, Feed] = ([], [])
    for node, value in zip(program.placeholders, values, strict=True):
        spec = drawn.get(str(node.target))
        if spec is None:
            for end in ends:
                end.append(value)
            continue
        coins = torch.rand(value.shape, generator=generator) < 0.5
        low, high = (torch.tensor(int(bound), dtype=value.dtype) for bound in (spec.low, spec.high))
        ends[0].append(torch.where(coins, low, high))
        ends[1].append(torch.where(coins, high, low))
    if all(_is_finite(program, v) for v in (values, *ends)):
        return program
    few = tuple(replace(s, few=True) if s.name in drawn else s for s in program.inputs)
    return replace(program, inputs=few)


def _is_finite(program: Program, values: Feed) -> bool:
    wide = evaluate_where_it_runs(program, values)
    if wide is None or not all_finite(wide):
        return False
    try:
        return all_finite(evaluate(program, typed(program, values), None))
    except Exception:  # of any kind: a kernel that its dtype lacks is told elsewhere
        return False
