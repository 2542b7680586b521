"""Classification heads of an expert."""

from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

__all__ = ['CosineLinear', 'ExpertHeads', 'check_head', 'create_head']


@torch.fx.wrap  # looks at devices and types, which symbolic tracing cannot
def float32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x @ weight.T + bias` in float32 (float64 stays), with autocast switched off.

    A router's decision and a cosine times 30 do not survive bfloat16's 8 bits of mantissa, so these small layers
    opt out of autocast; their cost is negligible. The bias has no default: `torch.fx.wrap` drops it, and a graph of
    `torch.cond` cannot be exported then.

    Args:
        x: Features, shape (B, D).
        weight: Shape (N, D).
        bias: Shape (N,), or None.

    Returns:
        Shape (B, N), float32 or float64.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript leaves out a branch of exactly this form only
        # is_autocast_enabled() does not know the meta device, which has no autocast either
        if x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return F.linear(x, weight, bias)
    return F.linear(x, weight, bias)


@torch.fx.wrap
def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """`x` as float32 if its type is narrower."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        return x.float()
    return x


@torch.fx.wrap
def plain_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight as an ordinary tensor in float32 or float64.

    A quantiser such as torchao's replaces weights by tensors of its own type, which know a matrix product and
    `dequantize`, and not the norm that a cosine asks for.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript leaves out a branch of exactly this form only
        if type(weight).dequantize is not torch.Tensor.dequantize:
            return at_least_float32(weight.dequantize())
    return at_least_float32(weight)


class CosineLinear(nn.Linear):
    """Scaled cosine similarity between features and one vector a class.

    `logits[b, c] = scale * cos(x[b], weight[c])`, so that the norm of a class vector, which grows with the class's
    frequency, has no say; with a bias, which begins at 0, `+ bias[c]`. Computed in float32 under autocast; the result
    has the type of the weight.

    It is an `nn.Linear`, so that whoever draws new heads by type, as transformers does, draws this one too.

    Source: RIDE (arXiv:2010.01809), `NormedLinear` with s = 30, after LDAM (arXiv:1906.07413).

    Args:
        in_features: Width D of the pooled features.
        out_features: Number of classes C.
        scale: Factor on the cosine.
        bias: Have one number a class that is added, as a logit adjustment is (`ride_timm.inference.prior`); RIDE's
            has none.
        device: Where to create the weight.
        dtype: Type of the weight.

    Shape:
        - Input: (B, D)
        - Output: (B, C)
        - weight: (C, D)
        - bias: (C,), or None
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale: float = 30.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.scale = scale

    def reset_parameters(self) -> None:
        """Draw the class vectors from uniform(-1, 1) and scale each to norm 1; a bias becomes 0."""
        with torch.no_grad():
            self.weight.uniform_(-1.0, 1.0)
            self.weight.copy_(F.normalize(self.weight, dim=1))
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of pooled features `x` (B, D)."""
        x = F.normalize(at_least_float32(x), dim=1)
        weight = F.normalize(plain_weight(self.weight), dim=1)
        logits = self.scale * float32_linear(x, weight, None)
        if self.bias is not None:
            logits = logits + self.bias
        return logits.to(self.weight.dtype)

    def extra_repr(self) -> str:
        """The sizes and the scale, for `print(model)`."""
        sizes = f'in_features={self.in_features}, out_features={self.out_features}, scale={self.scale:g}'
        return sizes + ', bias=True' * (self.bias is not None)


class ExpertHeads(nn.Conv2d):
    """The heads of K experts, as `get_classifier` gives them: a sequence, and a layer over feature maps.

    timm's test-time pooling (`validate.py --test-pool`) applies a classifier at each place of a feature map, and takes
    a convolution as it is. The heads belong to the experts; this holds no parameters of its own.

    Args:
        heads: K heads, each of features (B, D).
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        nn.Module.__init__(self)  # without the weight of a convolution
        self.heads = nn.ModuleList(heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, index: int) -> nn.Module:
        return self.heads[index]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mean logits (B, C, H, W) of the experts' feature maps `x` (B, K * D, H, W), side by side."""
        parts = x.permute(0, 2, 3, 1).chunk(len(self.heads), dim=-1)
        logits = [
            head(part.flatten(0, 2)).unflatten(0, part.shape[:3]) for head, part in zip(self.heads, parts, strict=True)
        ]
        return torch.stack(logits).mean(dim=0).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Nothing: the heads show themselves."""
        return ''


def check_head(num_classes: int, global_pool: str | None) -> None:
    """Refuse a head without pooling before it.

    Args:
        num_classes: Number of classes.
        global_pool: Type of pooling, '' for none; None where it is a backbone's own.

    Raises:
        ValueError: There are classes and no pooling.
    """
    if num_classes > 0 and global_pool == '':
        raise ValueError(
            "global_pool='' leaves nothing to classify; pass num_classes=0 with it, or a pooling such as 'avg'."
        )


def create_head(
    head: str,
    in_features: int,
    num_classes: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A head by name.

    Args:
        head: `cosine` (CosineLinear, scale 30), `biased_cosine` (the same with a bias), or `linear` (with a bias).
        in_features: Width of the pooled features of one expert.
        num_classes: Number of classes; 0 gives an identity.
        device: Where to create the weight.
        dtype: Type of the weight.

    Raises:
        ValueError: `head` is none of these.
    """
    if head not in ('cosine', 'biased_cosine', 'linear'):
        raise ValueError(f"head={head!r} is not known; use 'cosine', 'biased_cosine' or 'linear'.")
    if num_classes <= 0:
        return nn.Identity()
    if head != 'linear':
        return CosineLinear(in_features, num_classes, bias=head == 'biased_cosine', device=device, dtype=dtype)
    return nn.Linear(in_features, num_classes, device=device, dtype=dtype)
