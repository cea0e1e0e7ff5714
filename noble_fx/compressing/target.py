"""What a layer should give, and the weight, U and bias that come nearest to it.

In place it is what the layer gives now. In sequence with a mixture β, inputs x come from the compressed model and the
target from x̂ = (1 − β) x + β x_original: W, U and b are first corrected to the best fit of that, which any rank then
approximates.

    y = W x + U t + b     ->     L x + U' t + b'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from noble_fx.compressing.residual import Fit, Residual, residual

_RIDGE = 1e-6  # of the mean variance: where inputs say nothing the weight stays what it was


@dataclass(frozen=True)
class Terms:
    """One linear map with its free terms, in float64: W [N, K], U [N, r] (r = 0 without a branch), b [N] or None."""

    weight: Tensor
    up: Tensor
    bias: Tensor | None

    @property
    def whole(self) -> Tensor:
        """[W U b] [N, K + r + 1]."""
        bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return torch.cat([self.weight, self.up, bias.unsqueeze(1)], 1)


def variation(terms: Terms, rest: Residual, of_outputs: bool) -> float:
    """Σ ‖y − mean‖² of the layer's output, from sums of [x | t], or of [W x | t] where these are `of_outputs`."""
    width = len(terms.weight)
    first = torch.eye(width, dtype=terms.weight.dtype, device=terms.weight.device) if of_outputs else terms.weight
    both = torch.cat([first, terms.up], 1)
    return float(((both @ rest.within) * both).sum())


def corrected(terms: Terms, sums: Tensor, cross: Tensor, centred: bool) -> Terms:
    """The terms that fit [W U b] x̂ best: `sums` Σ vᵀv and `cross` Σ v̂ᵀv of v = [x | t | 1]."""
    free = terms.up.shape[1]
    rest = residual(sums, free, centred)
    aimed = terms.whole @ cross  # Σ y v
    rows, mean = float(sums[-1, -1]), aimed[:, -1] / float(sums[-1, -1])
    means = torch.cat([rest.fit.mean, rest.fit.mean_free])
    fit = aimed[:, :-1] - (rows * mean.outer(means) if centred else 0.0)
    if not centred and terms.bias is not None:
        fit = fit - terms.bias.outer(sums[-1, :-1])
    off = fit - torch.cat([terms.weight, terms.up], 1) @ rest.within  # what the terms as they are do not explain
    off_inputs, off_free = off[:, : rest.width], off[:, rest.width :]
    needed = off_inputs - off_free @ rest.fit.slope.T
    ridge = _RIDGE * rest.rest.diagonal().mean().clamp(min=torch.finfo(sums.dtype).tiny)
    damped = rest.rest + ridge * torch.eye(rest.width, dtype=sums.dtype, device=sums.device)
    weight = terms.weight + torch.linalg.solve(damped, needed.T).T
    up = terms.up + (off_free @ rest.inverse if free else 0.0) + (terms.weight - weight) @ rest.fit.slope
    bias = mean - weight @ rest.fit.mean - up @ rest.fit.mean_free if centred else terms.bias
    return Terms(weight, up, bias)


def refitted(
    terms: Terms, missing: Callable[[Tensor], Tensor], fit: Fit, centred: bool
) -> tuple[Tensor, Tensor | None]:
    """U' [N, r] and b' beside a new weight: what W x − Ŵ x keeps of t and of 1.

    `missing` multiplies W − Ŵ, in the coordinates of z, with a matrix [m, ·]: U' = U + (W − Ŵ) C_xt C_tt⁻¹.
    """
    change = missing(fit.slope)
    if not centred:
        return terms.up + change, terms.bias
    shift = missing(fit.mean.unsqueeze(1))[:, 0] - change @ fit.mean_free
    return terms.up + change, shift if terms.bias is None else terms.bias + shift
