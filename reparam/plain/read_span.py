"""Reads a span of the graph as values and linear forms.

Sums, concatenations, splits, channel affines and convolutions become forms; activations, pools and gates become
values. A value that may be held or inlined is `optional`: sums that have several readers, the input of a strided
pointwise layer after decimation, partial sums of a layer that reads a concatenation.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from reparam.algebra import (
    Affine,
    Layer,
    Window,
    along,
    average_kernel,
    broadcast_channels,
    compose_windows,
    cut_of_map,
    identity_window,
    layer_window,
    pad_window,
    pool_window,
    read_affine,
    read_layer,
    read_picks,
    spatial_padding,
    weights,
    zero_padding,
)
from reparam.ir import (
    ADDS,
    AVG_POOLS,
    CATS,
    MAX_POOLS,
    PADS,
    SLICES,
    SPLITS,
    SUBS,
    ZEROS,
    Program,
    Refusal,
    arguments,
    aten,
    is_call,
    is_float,
    op_name,
    pair,
    shape_of,
)

from .activation import read_activation
from .crops import cropped
from .linear_form import (
    LinearForm,
    Map,
    RegisterValue,
    Shift,
    add_forms,
    apply_map,
    cat_forms,
    reference,
    scale_form,
    slice_form,
    unit,
)
from .max_pool_as_relu import spell_max_pool
from .register_value import Refused, SpanValues, ValueBuilder, first_blocking_call, why_not
from .span import Span, carries_data
from .squeeze_excite import Gate, find_gates


def read_span(program: Program, span: Span, max_pool: str = "keep") -> SpanValues | Refusal:
    """The span as values and forms, or the first thing in it that has no place in a register, walls before all else.

    max_pool: "relu" spells max-pools with ReLUs, "keep" leaves them, which lets nothing be carried past.
    """
    try:
        return _Reader(program, span, max_pool).read()
    except Refused as e:
        wall = first_blocking_call(span)
        return e.refusal if wall is None else Refusal(why_not(wall), wall)


_PICKS = frozenset(
    {
        aten.index_select.default,
        aten.channel_shuffle.default,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        aten.expand.default,
    }
)


class _Reader(ValueBuilder):
    def __init__(self, program: Program, span: Span, max_pool: str) -> None:
        super().__init__(program, span)
        self.spell_max_pool = max_pool == "relu" and self.ndim > 0
        self.pools: dict[tuple[int, str, str], LinearForm] = {}
        self.cuts_of: dict[fx.Node, tuple[fx.Node, Window]] = {}

    def read(self) -> SpanValues:
        if self.rank < 2:
            raise Refused(self.span.exit, "its values have no channel axis")
        self.forms[self.span.entry] = self.inputs()
        gates = find_gates(self.program, self.span)
        hidden = {n for g in gates.values() for n in g.body}
        for node in self.span.nodes:
            if node in hidden:
                continue
            form = self.gate(node, gates[node]) if node in gates else self.form(node)
            if isinstance(form, list):
                self.pieces[node] = form
                continue
            if node is self.span.exit:
                if not form.channels:
                    raise Refused(node, "it has no channels")
                self.finish(node, form)
                break
            readers = [u for u in node.users if u in self.inside and u not in hidden]
            if len(readers) > 1 and form.bare is None:
                form = reference(self.hold(node, form))
            self.forms[node] = form
        return SpanValues(self.span, tuple(self.values), self.axis)

    # ---- operators ---------------------------------------------------------------------------------------------------

    def form(self, node: fx.Node) -> LinearForm | list[LinearForm]:
        program = self.program
        if not is_float(node) and not is_call(node, SPLITS):
            several = isinstance(node.meta["val"], list | tuple)
            raise Refused(node, why_not(node) if several else f"{op_name(node)} gives no floating numbers")
        layer = read_layer(program, node)
        if layer is not None:
            return self.layer(layer)
        act = read_activation(program, node)
        if act is not None:
            return self.activated(node, self.of(arguments(node).get("self", node.args[0])), act)
        for targets, read in self.readers():
            if is_call(node, targets):
                return read(node)
        affine = read_affine(program, node)
        if isinstance(affine, Affine):
            return self.affine(affine)
        raise Refused(node, why_not(node))

    def readers(self) -> tuple[tuple[frozenset[Any], Callable[[fx.Node], LinearForm | list[LinearForm]]], ...]:
        return (
            (AVG_POOLS, self.average),
            (MAX_POOLS, self.max_pool),
            (PADS, self.pad),
            (CATS, self.cat),
            (SPLITS, self.split),
            (frozenset({operator.getitem}), self.item),
            (SLICES, self.slice),
            (_PICKS, self.pick),
            (ADDS | SUBS, self.sum),
            (ZEROS, lambda node: LinearForm(shape_of(node)[self.axis], ())),
        )

    def layer(self, layer: Layer) -> LinearForm:
        node = layer.node
        if layer.kind == "transposed":
            raise Refused(node, "a transposed convolution enlarges the map, and nothing can be carried past it")
        if (layer.kind == "linear") != (self.ndim == 0):
            raise Refused(node, "a linear layer and a convolution do not share a register")
        window = layer_window(layer)
        c_out, c_in, groups = layer.out_channels, layer.in_channels, layer.geometry.groups
        x = self.value_of(layer.x)
        if any(s > 1 for s in window.stride) and all(n == 1 for n in window.size) and layer.pointwise:
            x = self.decimated(x, window, node)
            window = Window((1,) * self.ndim, window.size, window.step, window.first, (-1,) * self.ndim)
        program = self.program
        own = Map(window, groups, 0, c_out, 0, c_in, lambda: weights(program, layer)[0])
        form = LinearForm(c_out, ((x, own),))
        if own.plain and groups == 1 and x.optional and x.form is not None:
            form = self.accumulated(node, x, own)
        if layer.bias is not None:
            bias = program.tensor(layer.bias)
            assert bias is not None
            if bool((bias != 0).any()):
                form = replace(form, shifts=(*form.shifts, Shift(0, c_out, lambda: bias)))
        if any(s > 1 for s in window.stride) and any(read_activation(program, u) is None for u in node.users):
            form = reference(self.hold(node, form))  # a shortcut: its reader may come after others of its resolution
        elif self.spread_otherwise(layer, window):
            form = reference(self.hold(node, form))  # one kernel over the taps of both is larger than the two
        return form

    def spread_otherwise(self, layer: Layer, window: Window) -> bool:
        """Whether another layer reads the same with taps at other distances, before any activation comes."""
        if all(n == 1 for n in window.size) or all(read_activation(self.program, u) for u in layer.node.users):
            return False
        siblings = [read_layer(self.program, u) for u in layer.x.users if u in self.inside and u is not layer.node]
        return any(layer_window(s).step != window.step for s in siblings if s is not None and not s.pointwise)

    def accumulated(self, node: fx.Node, x: RegisterValue, own: Map) -> LinearForm:
        """A pointwise layer of a concatenation as partial sums, each of which a register may hold in place of parts."""
        assert x.form is not None
        whole = LinearForm(own.n_out, ((x, own),))
        parts = list(dict.fromkeys(v for v, _ in x.form.maps))
        if len(parts) < 3 or x.form.shifts:
            return whole
        spread = apply_map(own, x.form)
        if isinstance(spread, Refusal):
            return whole
        total = LinearForm(own.n_out, ())
        for i, part in enumerate(parts):
            maps = tuple((v, m) for v, m in spread.maps if v is part)
            total = LinearForm(own.n_out, total.maps + maps)
            if 0 < i < len(parts) - 1:
                partial = self.new(node, "layer", total, optional=True, low=-math.inf)
                total = reference(partial)
        return total

    def decimated(self, x: RegisterValue, window: Window, node: fx.Node) -> RegisterValue:
        """Every s-th element of `x`: what a strided pointwise layer reads."""
        key = (x.index, window)
        if key not in self.decimations:
            form = LinearForm(x.channels, ((x, Map(window, x.channels, 0, x.channels, 0, x.channels, unit)),))
            made = self.new(node, "layer", form, optional=True, low=x.low)
            made.channels = x.channels
            self.decimations[key] = made
        return self.decimations[key]

    def average(self, node: fx.Node) -> LinearForm:
        window = pool_window(node)
        if window is None:
            raise Refused(node, "its average pool divides by fewer elements at the border (odd sizes or padding)")
        x = self.value_of(arguments(node)["self"])
        kernel = average_kernel(x.channels, window.size, arguments(node).get("divisor_override"))
        own = Map(window, x.channels, 0, x.channels, 0, x.channels, lambda: kernel)
        return reference(self.hold(node, LinearForm(x.channels, ((x, own),))))

    def max_pool(self, node: fx.Node) -> LinearForm:
        args = arguments(node)
        x = self.value_of(args["self"])
        if set(pair(args["kernel_size"], self.ndim)) == {1} and args["stride"]:
            window = replace(identity_window(self.ndim), stride=pair(args["stride"], self.ndim))
            return reference(self.decimated(x, window, node))
        key = (x.index, str(node.args[1:]), str(node.kwargs))
        if key not in self.pools:  # twins are one value
            value = None if self.spell_max_pool else self.new(node, "pool", reference(x))
            self.pools[key] = spell_max_pool(self, node, x) if value is None else reference(value)
        return self.pools[key]

    def pad(self, node: fx.Node) -> LinearForm:
        args = arguments(node)
        flat, c = list(args["pad"]), shape_of(node)[self.axis]
        zero = args.get("mode", "constant") == "constant" and not args.get("value")
        if zero and self.axis == 1 and len(flat) == 2 * (self.rank - 1) and not any(flat[:-2]) and min(flat) >= 0:
            empty = (LinearForm(flat[-2], ()), LinearForm(flat[-1], ()))
            return cat_forms([empty[0], self.of(args["self"]), empty[1]])
        padding = spatial_padding(node) if self.ndim else None
        if padding is not None and all(p <= 0 for ends in padding for p in ends):
            return self.cut(node, pad_window(padding))
        padding = zero_padding(node) if self.ndim else None
        if padding is None:
            raise Refused(node, "it pads with something else than zeros around the map")
        made = apply_map(Map(pad_window(padding), c, 0, c, 0, c, unit), self.of(args["self"]))
        if isinstance(made, Refusal):
            raise Refused(node, made.reason)
        return made

    def cat(self, node: fx.Node) -> LinearForm:
        args = arguments(node)
        if int(args["dim"]) % self.rank != self.axis:
            raise Refused(node, "it concatenates along another axis than the channels")
        return cat_forms([self.of(n) if carries_data(n) else self.zeros(node, n) for n in args["tensors"]])

    def zeros(self, node: fx.Node, part: fx.Node) -> LinearForm:
        tensor = self.program.tensor(part)
        if is_call(part, frozenset({aten.zeros.default})) or (tensor is not None and not bool(tensor.any())):
            return LinearForm(shape_of(part)[self.axis], ())
        raise Refused(node, "it concatenates a constant that is not zero")

    def split(self, node: fx.Node) -> list[LinearForm]:
        args = arguments(node)
        if int(args["dim"]) % self.rank != self.axis:
            raise Refused(node, "it splits along another axis than the channels")
        form, start, made = self.of(args["self"]), 0, []
        for piece in node.meta["val"]:
            made.append(slice_form(form, start, int(piece.shape[self.axis])))
            start += int(piece.shape[self.axis])
        return made

    def item(self, node: fx.Node) -> LinearForm:
        source, index = node.args
        if not isinstance(source, fx.Node) or source not in self.pieces:
            raise Refused(node, "it picks from a result that is not a split of channels")
        assert isinstance(index, int)
        return self.pieces[source][index]

    def slice(self, node: fx.Node) -> LinearForm:
        args = arguments(node)
        axis = int(args["dim"]) % self.rank
        whole, part = shape_of(args["self"]), shape_of(node)
        if self.ndim and axis > self.axis:
            window = cut_of_map(node)
            if window is None:
                raise Refused(node, "where it cuts the map depends on a free size")
            return self.cut(node, window)
        if axis != self.axis:
            raise Refused(node, "it cuts along another axis than the channels")
        if args.get("step", 1) != 1:
            return self.pick(node)
        start = int(args["start"] or 0)
        return slice_form(self.of(args["self"]), start % whole[axis] if start < 0 else start, part[axis])

    def pick(self, node: fx.Node) -> LinearForm:
        """Channels by their numbers, as a slice for each run of them."""
        found = read_picks(self.program, node)
        if found is None:
            raise Refused(node, why_not(node))
        if found.axis != self.axis:
            raise Refused(node, "it picks along another axis than the channels, or what it picks depends on the input")
        return self.picked(self.of(found.x), found.positions)

    def picked(self, form: LinearForm, ids: Sequence[int]) -> LinearForm:
        starts = [i for i, c in enumerate(ids) if not i or c != ids[i - 1] + 1]
        runs = zip(starts, [*starts[1:], len(ids)], strict=True)
        return cat_forms([slice_form(form, ids[a], b - a) for a, b in runs])

    def cut(self, node: fx.Node, window: Window) -> LinearForm:
        """Some positions of the map, in order; after the last of several such cuts a value of its own."""
        source = arguments(node)["self"]
        base, before = self.cuts_of.get(source, (source, identity_window(self.ndim)))
        whole = compose_windows(before, window)
        assert not isinstance(whole, Refusal)  # a cut needs no padding
        self.cuts_of[node] = base, whole
        c = shape_of(node)[self.axis]
        made = apply_map(Map(whole, c, 0, c, 0, c, unit), self.of(base))
        if isinstance(made, Refusal):
            raise Refused(node, made.reason)
        if all(is_call(u, SLICES) for u in node.users):
            return made
        if any(s > 1 for s in whole.stride):
            return reference(self.hold(node, made))
        return cropped(self, node, self.value_of(base), whole)

    def sum(self, node: fx.Node) -> LinearForm:
        args = arguments(node)
        left, right = args["self"], args["other"]
        if not all(isinstance(s, fx.Node) and carries_data(s) for s in (left, right)):
            affine = read_affine(self.program, node)
            if isinstance(affine, Affine):
                return self.affine(affine)
            raise Refused(node, "it adds a constant that varies along other axes than the channels")
        wide = max(shape_of(left), shape_of(right), key=lambda s: s[self.axis])[self.axis] if self.ndim else 0
        sizes = [s.meta["val"].shape for s in (left, right)]
        if shape_of(left) != shape_of(right) and not (wide and broadcast_channels(sizes, self.axis)):
            raise Refused(node, "its operands have different shapes and are broadcast")
        alpha = args.get("alpha")
        if not isinstance(alpha, (int, float, type(None))):
            raise Refused(node, "its factor alpha is not a number")
        second = float(1 if alpha is None else alpha) * (-1.0 if is_call(node, SUBS) else 1.0)
        a, b = (self.widened(self.of(side), wide) for side in (left, right))
        if is_call(node, frozenset({aten.rsub.Tensor, aten.rsub.Scalar})):
            a, b = b, a
        return add_forms(a, b if second == 1.0 else self.scaled(b, second))

    def widened(self, form: LinearForm, width: int) -> LinearForm:
        """One channel as many copies of it, beside a value of `width` channels."""
        return self.picked(form, [0] * width) if form.channels == 1 < width else form

    def scaled(self, form: LinearForm, factor: float) -> LinearForm:
        return scale_form(form, torch.tensor([factor], dtype=torch.float64), None, self.ndim)

    def affine(self, affine: Affine) -> LinearForm:
        try:
            scale, shift = along(affine.pair.scale, self.axis), along(affine.pair.shift, self.axis)
        except ValueError:
            raise Refused(affine.node, "its constant varies along other axes than the channels") from None
        return scale_form(self.of(affine.x), scale, shift, self.ndim)

    def gate(self, node: fx.Node, gate: Gate) -> LinearForm:
        x = self.value_of(gate.x)
        x.optional = False
        return reference(self.new(node, "gate", reference(x), body=gate.body, gate_width=gate.width))
