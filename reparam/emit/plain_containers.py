"""Arguments and results in containers that torch alone knows, as a `.pt2` archive has to hold them.

A dataclass, or a mapping of a library, becomes a dict with the same keys, and so does a dict that makes what it lacks;
a named tuple, or what an operator of torch returns, becomes a tuple.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from reparam.ir import keys_of

_KNOWN = (tuple, list, dict, OrderedDict, deque, torch.Size, immutable_list, immutable_dict)


def plain_containers(spec: pytree.TreeSpec | None) -> pytree.TreeSpec | None:
    """`spec` with each container of another class as a dict of its keys, or as a tuple where it has none."""
    if spec is None or spec.is_leaf():
        return spec
    children = [made for child in spec.children() if (made := plain_containers(child)) is not None]
    if spec.type in _KNOWN:
        return pytree.TreeSpec(spec.type, spec.context, children)
    if spec.type is defaultdict:
        return pytree.TreeSpec(dict, spec.context[1], children)
    keys = None if spec.type is namedtuple else keys_of(spec)
    return pytree.TreeSpec(tuple, None, children) if keys is None else pytree.TreeSpec(dict, keys, children)
