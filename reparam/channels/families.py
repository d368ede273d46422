"""Which family an operator belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from reparam.ir import WEIGHTED, is_call, is_float, op_name

from .apart import Apart, BatchNorm, GroupNorm, LayerNorm, is_apart
from .attention import Attention, Product, is_attention, is_product
from .concatenation import Concatenation, is_concatenation
from .family import Family
from .following import is_movement
from .halves import Halves, is_glu
from .layers import Layers
from .movement import Movement
from .pointwise import Pointwise, is_pointwise

_NORMS: Mapping[str, Family] = {
    "batch_norm": BatchNorm(),
    "group_norm": GroupNorm(),
    "instance_norm": GroupNorm(),
    "layer_norm": LayerNorm(),
}


def family_of(node: fx.Node) -> Family | None:
    """What is known of a call's operator, None when it is nothing."""
    if not is_float(node) or node.op != "call_function":
        return None
    if is_call(node, WEIGHTED):
        return Layers()
    if is_attention(node):
        return Attention()
    if is_product(node):
        return Product()
    if is_concatenation(node):
        return Concatenation()
    if is_apart(node):
        return Apart()
    if is_movement(node):
        return Movement()
    if is_pointwise(node):
        return Pointwise()
    if is_glu(node):
        return Halves()
    return _NORMS.get(op_name(node))


def family_that_knows(node: fx.Node) -> Family:
    """The family of a call whose channels are known."""
    family = family_of(node)
    assert family is not None
    return family
