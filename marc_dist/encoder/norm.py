"""Batch norm whose statistics are those of the global batch: on any device, with unequal and empty ranks.

torch's SyncBatchNorm needs a GPU and rows on every rank; without exact global statistics a run would depend on the
number of its ranks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from marc_dist import comm
from marc_dist.config import ConfigError

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _shape(x: Tensor) -> tuple[int, ...]:
    return (1, x.shape[1], *([1] * (x.ndim - 2)))


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias with mean and var over the rows of all ranks.

    Each rank sends (count, mean, sum of squared deviations), which combine without cancellation (Chan et al. 1979);
    backward sends the two sums that the gradient of a batch statistic needs. ``rows`` = 0 makes a rank a listener: it
    sends nothing, whatever stands in ``x``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, live: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        local = x.numel() // max(x.shape[1], 1) if live else 0
        if local:
            mean = wide.mean(axes)
            squares = (wide - mean.reshape(_shape(x))).square().sum(axes)
        else:
            mean = squares = wide.new_zeros(x.shape[1])
        count = mean.new_full((1,), local)
        every = comm.gather_rows_plain(torch.cat([count, mean, squares])[None], [1] * comm.world())
        counts, means, parts = every[:, :1], every[:, 1 : 1 + x.shape[1]], every[:, 1 + x.shape[1] :]
        total = counts.sum()
        global_mean = (counts * means).sum(0) / total.clamp(min=1)
        global_squares = (parts + counts * (means - global_mean).square()).sum(0)
        var = global_squares / total.clamp(min=1)
        scale = torch.rsqrt(var + eps)
        hat = (wide - global_mean.reshape(_shape(x))) * scale.reshape(_shape(x))
        y = hat if weight is None else hat * weight.to(hat.dtype).reshape(_shape(x))
        if bias is not None:
            y = y + bias.to(hat.dtype).reshape(_shape(x))
        ctx.save_for_backward(x, weight, global_mean, scale, total)
        ctx.has_bias, ctx.live = bias is not None, live
        ctx.mark_non_differentiable(global_mean, var, total)
        return y.to(x.dtype), global_mean, var, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        dy = grads[0].to(mean.dtype)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        hat = (x.to(mean.dtype) - mean.reshape(_shape(x))) * scale.reshape(_shape(x))
        sum_dy, sum_dy_hat = dy.sum(axes), (dy * hat).sum(axes)
        if not ctx.live:
            sum_dy, sum_dy_hat = torch.zeros_like(sum_dy), torch.zeros_like(sum_dy_hat)
        both = comm.sum_(torch.stack([sum_dy, sum_dy_hat])) / total.clamp(min=1)
        inner = dy - both[0].reshape(_shape(x)) - hat * both[1].reshape(_shape(x))
        gain = scale if weight is None else scale * weight.to(scale.dtype)
        dx = (inner * gain.reshape(_shape(x))).to(x.dtype) if ctx.live else torch.zeros_like(x)
        dweight = None if weight is None else sum_dy_hat.to(weight.dtype)
        dbias = sum_dy.to(weight.dtype if weight is not None else mean.dtype) if ctx.has_bias else None
        return dx, dweight, dbias, None, None


class SyncBatchNorm(_BatchNorm):
    """A batch norm of any dimension over all ranks, followed by what timm fuses behind it (dropout, activation).

    Equal to torch's own in a world of one, where torch's own code runs. State-dict keys are those of the module that
    it replaces.
    """

    def __init__(self, source: _BatchNorm) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.weight, self.bias = source.weight, source.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(source, name))
        self.training = source.training
        self.drop = cast(nn.Module, getattr(source, "drop", nn.Identity()))
        self.act = cast(nn.Module, getattr(source, "act", nn.Identity()))
        self.live = True  # False: this rank has no rows in this step and only listens

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (rows, channels, ...), got {input.ndim} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training over the rows of all ranks, in evaluation with the running statistics."""
        alone = comm.world() == 1 and self.live and input.numel() > input.shape[1]
        if not self.training or alone:
            out = super().forward(input)
        else:
            self._check_input_dim(input)
            out, mean, var, total = _Normalise.apply(input, self.weight, self.bias, self.eps, self.live)
            self._track(mean, var, total)
        return cast(Tensor, self.act(self.drop(out)))

    def _track(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        """Move the running statistics as torch does: unbiased variance, fixed or cumulative momentum."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            unbiased = var * (total / (total - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def _is_plain(module: nn.Module) -> bool:
    """Whether a batch norm does what torch's does (its forward is inherited), or is timm's norm + dropout + act."""
    from timm.layers.norm_act import BatchNormAct2d

    kind = type(module)
    return kind is BatchNormAct2d or any(issubclass(kind, plain) and kind.forward is plain.forward for plain in PLAIN)


def synchronise(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside ``module`` (or itself) by ours; parameters and buffers are shared, not copied.

    Raises:
        ConfigError: a batch norm of a kind that we cannot prove equal.
    """
    if isinstance(module, SyncBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        if not _is_plain(module):
            raise ConfigError(
                f"model.batch_norm: the backbone holds a {type(module).__name__}, which cannot be synchronised; "
                "choose model.batch_norm=frozen or another backbone"
            )
        return SyncBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child))
    return module


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Every batch norm inside ``module``."""
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]
