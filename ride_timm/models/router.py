"""The router that decides how many experts an image passes."""

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from .heads import at_least_float32, float32_linear

__all__ = ['ExpertRouter']

HIDDEN_FEATURES = 16

# symbolic tracing keeps them whole in this module too
torch.fx.wrap('at_least_float32')
torch.fx.wrap('float32_linear')


class ExpertRouter(nn.Module):
    """After each expert but the last: is another expert needed for this image?

    Router I reads the pooled features of expert I, L2-normalised, through its own linear layer to 16 features and a
    ReLU, and next to them the `top_k` largest running mean logits of experts 0..I; one linear layer shared by all
    routers gives the logit of "go on". Computed in float32 (float64 stays) whatever the type of the weights.

    Before any training its answer is 1 minus the gap between the two largest running mean logits, a rule that is hard
    to beat; the authors' starts at random.

    Source: RIDE (arXiv:2010.01809), section 3, "expert assignment module".

    Args:
        num_experts: Number K of experts; there are K - 1 routers.
        in_features: Width D of the pooled features of one expert.
        top_k: How many of the largest running mean logits the router sees.
        device: Where to create the weights.
        dtype: Type of the weights.
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        top_k: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.hidden = nn.ModuleList(
            nn.Linear(in_features, HIDDEN_FEATURES, device=device, dtype=dtype) for _ in range(num_experts - 1)
        )
        self.out = nn.Linear(top_k + HIDDEN_FEATURES, 1, device=device, dtype=dtype)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.weight[0, 0] = -1.0
            self.out.weight[0, 1:2].fill_(1.0 if top_k > 1 else 0.0)
            self.out.bias.fill_(1.0)

    @torch.jit.unused  # TorchScript compiles every submodule, called or not; a network that is not routed scripts
    def forward(self, index: int, features: torch.Tensor, mean_logits: torch.Tensor) -> torch.Tensor:
        """The logit of "go on to expert `index` + 1" for each image.

        Args:
            index: Which router, 0..K-2.
            features: Pooled features of expert `index`, shape (B, D).
            mean_logits: Mean logits of experts 0..`index`, shape (B, C).

        Returns:
            Shape (B,), float32 or float64.
        """
        features = F.normalize(at_least_float32(features), dim=1)
        seen = _apply(self.hidden[index], features).relu()
        top = at_least_float32(mean_logits).topk(self.top_k, dim=1).values.to(seen.dtype)
        joint = torch.cat([top, seen], dim=1)
        return _apply(self.out, joint).squeeze(1)


def _apply(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A linear layer in float32; one that a quantiser put in its place computes as it does by itself."""
    if type(layer) is nn.Linear:
        return float32_linear(x, at_least_float32(layer.weight), at_least_float32(layer.bias))
    answer: torch.Tensor = layer(x)
    return answer
