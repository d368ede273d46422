"""Linear operators and their weights: channel affines and how they travel, layers read and written, kernels composed
and added. It works on one program at a time and knows nothing of rules.
"""

from .branch_term import Branch, Link, Term, add_terms, branches_to, build_term, fit
from .channel_affine import Affine, Pair, along, compress, read_affine, same, trim, write_affine
from .fold_affine import AffinePlan, build_fold, plan_fold
from .kernels import average_kernel, batch_norm_affine, column, dirac, expand_groups, scale_outputs
from .layer import Geometry, Layer, conv_call, read_layer, weights, write_layer
from .movements import other_sizes
from .past_readers import TwoWays, build_two_ways, past_readers
from .picks import broadcast_channels, cut_of_map, read_picks
from .propagate_backward import backward
from .propagate_forward import forward, forward_all
from .route import HOMOGENEOUS, Route, execute
from .sample_maps import SUMS_OF_AXES, SampleMap, data_operand, keeps_samples, map_of, matrix_of, moved
from .shared_padding import share_padding
from .window import (
    Window,
    compose_over,
    compose_windows,
    identity_window,
    is_aligned,
    is_padded,
    layer_window,
    pad_window,
    pool_window,
    spatial_padding,
    uncropped,
    unite,
    zero_padding,
)

__all__ = [
    "HOMOGENEOUS",
    "SUMS_OF_AXES",
    "Affine",
    "AffinePlan",
    "Branch",
    "Geometry",
    "Layer",
    "Link",
    "Pair",
    "Route",
    "SampleMap",
    "Term",
    "TwoWays",
    "Window",
    "add_terms",
    "along",
    "average_kernel",
    "backward",
    "batch_norm_affine",
    "branches_to",
    "broadcast_channels",
    "build_fold",
    "build_term",
    "build_two_ways",
    "column",
    "compose_over",
    "compose_windows",
    "compress",
    "conv_call",
    "cut_of_map",
    "data_operand",
    "dirac",
    "execute",
    "expand_groups",
    "fit",
    "forward",
    "forward_all",
    "identity_window",
    "is_aligned",
    "is_padded",
    "keeps_samples",
    "layer_window",
    "map_of",
    "matrix_of",
    "moved",
    "other_sizes",
    "pad_window",
    "past_readers",
    "plan_fold",
    "pool_window",
    "read_affine",
    "read_layer",
    "read_picks",
    "same",
    "scale_outputs",
    "share_padding",
    "spatial_padding",
    "trim",
    "uncropped",
    "unite",
    "weights",
    "write_affine",
    "write_layer",
    "zero_padding",
]
