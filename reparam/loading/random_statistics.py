"""Random normalisation statistics for untrained networks, such that a wrong fold shows and nothing explodes.

Fresh statistics (mean 0, variance 1, γ 1, β 0) make a normalisation layer the identity and hide every mistake in
folding it; blindly drawn ones let activations grow without bound in deep networks. `randomize_statistics` estimates
them from a batch first and disturbs them after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from reparam.errors import InputError


def randomize_statistics(
    module: nn.Module, example_inputs: Sequence[Any], seed: int = 0, *, gains: bool = True
) -> nn.Module:
    """Gives an untrained network the statistics of a trained one, so that a wrong fold shows. Returns it in eval mode.

    Normalisation weights γ are drawn from U(0.5, 1.5), a tenth of them negated, and biases β from N(0, 0.1). One random
    batch passes through the network; each normalisation layer takes the batch's mean and variance at its own input,
    disturbs them (mean += N(0, 0.1)·σ, variance ×= U(0.5, 1.5)), and normalises with the result, so that disturbances
    do not add up along the depth. With `gains`, other vectors that are constant (LayerScale, skip gains, zero biases)
    are redrawn: v·U(0.5, 1.5), or N(0, 0.1) where |v| < 0.01.

    example_inputs: tensors (N, ...), whose shapes and dtypes the random batch takes, with N from 4 to 32.
    Nothing else changes: momenta and batch counters stay as they were.

    Raises InputError when the outputs of a second batch do not lie within 1e-3 … 1e3.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in module.modules() if isinstance(m, _NormBase)]
    module.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for norm in norms:
            _redraw_affine(norm, generator)
        if gains:
            _redraw_gains(module, norms, generator)
        size = min((_samples(x) for x in example_inputs if _is_batch(x)), default=0)
        _estimate(module, norms, [_batch(x, size, generator) for x in example_inputs], generator)
        outputs = module(*[_batch(x, size, generator) for x in example_inputs])
    _check_outputs(outputs)
    return module


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(like.shape, generator=generator) + 0.5).to(like)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return (0.1 * torch.randn(like.shape, generator=generator)).to(like)


def _redraw_affine(norm: _NormBase, generator: torch.Generator) -> None:
    if isinstance(norm.weight, Tensor):
        sign = torch.where(torch.rand(norm.weight.shape, generator=generator) < 0.1, -1.0, 1.0)
        norm.weight.copy_(_uniform(norm.weight, generator) * sign.to(norm.weight))
    if isinstance(norm.bias, Tensor):
        norm.bias.copy_(_normal(norm.bias, generator))


def _redraw_gains(module: nn.Module, norms: Sequence[_NormBase], generator: torch.Generator) -> None:
    done = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    for parameter in module.parameters():
        vector = sum(n > 1 for n in parameter.shape) <= 1 and parameter.numel() > 0
        if id(parameter) in done or not vector or not parameter.is_floating_point():
            continue
        value = parameter.flatten()[0]
        if bool((parameter == value).all()):
            small = abs(float(value)) < 0.01
            parameter.copy_(_normal(parameter, generator) if small else value * _uniform(parameter, generator))


def _is_batch(example: Any) -> bool:
    return isinstance(example, Tensor) and example.dim() > 0


def _samples(example: Tensor) -> int:
    """How many samples are drawn where this is the only input.

    The smaller the inputs, the more of them: a statistic of the few positions that are left after five halvings is
    mostly noise, which grows from layer to layer.
    """
    return max(4, example.shape[0], min(32, 2**17 // max(1, math.prod(example.shape[2:]))))


def _batch(example: Any, size: int, generator: torch.Generator) -> Any:
    """A random batch of `size` samples with the example's shape; integers repeat the example."""
    if not _is_batch(example):
        return example
    if not example.is_floating_point():
        return torch.cat([example] * -(-size // example.shape[0]))[:size]
    return torch.randn((size, *example.shape[1:]), generator=generator).to(example)


def _estimate(module: nn.Module, norms: Sequence[_NormBase], batch: Sequence[Any], generator: torch.Generator) -> None:
    """Sets each layer's running mean and variance, in the order in which the batch reaches the layers."""
    unvisited = {id(norm): norm for norm in norms}

    def observe(norm: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(norm, _NormBase)
        unvisited.pop(id(norm), None)
        if args:
            _set_statistics(norm, args[0], generator)

    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        module(*batch)
    finally:
        for handle in handles:
            handle.remove()
    for norm in unvisited.values():
        _disturb(norm, generator)


def _set_statistics(norm: _NormBase, x: Tensor, generator: torch.Generator) -> None:
    """x: (N, C, ...), the layer's input; a layer without running statistics is left alone."""
    if norm.running_mean is None or norm.running_var is None:
        return
    variance, mean = torch.var_mean(x.float(), dim=[d for d in range(x.dim()) if d != 1], correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance.clamp(min=1e-4))  # what is constant in this batch need not be in the next
    _disturb(norm, generator)


def _disturb(norm: _NormBase, generator: torch.Generator) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is not None and variance is not None:
        mean.add_(_normal(mean, generator) * variance.sqrt())
        variance.mul_(_uniform(variance, generator))


def _check_outputs(outputs: Any) -> None:
    tensors = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    for tensor in tensors:
        largest = float(tensor.abs().max()) if tensor.numel() else 1.0
        if not 1e-3 <= largest <= 1e3:
            raise InputError(
                f"with random statistics the largest output is {largest:.3g}, outside 1e-3 … 1e3; try another seed"
            )
