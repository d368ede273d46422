"""The processes of a run of `finetune.py`: what they add up, and batch norms that see the batch of all of them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


class World:
    """The processes of this run: torchrun's, or this one alone."""

    def __init__(self, device: str) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def close(self) -> None:
        """Leaves the group."""
        if self.size > 1:
            dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each of them reads it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


class SyncedNorm(_BatchNorm):
    """A batch norm over the batch of all processes, on the CPU too, where nn.SyncBatchNorm does not run."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x, axes, shape = input.float(), (0, *range(2, input.dim())), (1, -1, *(1,) * (input.dim() - 2))
        own = torch.full((1,), x.numel() / x.shape[1], device=x.device)
        sums = _Sum.apply(torch.cat([x.sum(axes), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        apart = x - mean.reshape(shape)  # sums of squares would lose digits where the mean is large
        variance = _Sum.apply(apart.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach(), share)
            self.running_var.lerp_(variance.detach() * count / (count - 1), share)
        y = apart * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y.to(input.dtype)


def prepared(model: nn.Module, world: World) -> nn.Module:
    """The network on its device, for training: norms see the batch of all processes; idle biases stay as they are."""
    for name, norm in list(model.named_modules()):
        if not isinstance(norm, _BatchNorm):
            continue
        if world.size > 1 and world.device.type == "cpu":
            norm.__class__ = SyncedNorm
        # A bias in front of a norm is taken off again: its gradient is rounding alone, which Adam would scale up.
        parent, _, leaf = name.rpartition(".")
        layer = leaf.removesuffix("_bn") if leaf.endswith("_bn") else leaf.removeprefix("bn")
        bias = getattr(dict(model.named_modules()).get(f"{parent}.{layer}".lstrip(".")), "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.requires_grad_(False)
    if world.size > 1 and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model.to(world.device)
