"""The gradients of D and U whose step of s U D is nearest to a step of the whole matrix (arXiv 2407.18242).

    gU' = s⁻² (I − P_U) gU (D Dᵀ)⁻¹ − U X        gD' = s⁻² (Uᵀ U)⁻¹ gD + X D

For every X [r, r] these make s (U gD' + gU' D) = P_U G + (I − P_U) G P_D, the best that rank r directions of D and U
reach of G. X is the one for which they are nearest to the gradients themselves, which solves

    (Uᵀ U) X + X (D Dᵀ) = −s⁻² (Uᵀ U)⁻¹ gD Dᵀ

in the eigenvectors of both sides. All inverses have δ added. Nothing is N × K, so Adam's moments, where Adam takes the
step, are those of gD' and gU' and not the paper's, which are of the whole matrix.
"""

from __future__ import annotations

from torch import Tensor, nn

from noble_fx.branches.factors import Factors
from noble_fx.training.rules.base import Rule
from noble_fx.training.rules.inverse import check_damping, spectra, wide
from noble_fx.training.rules.pairs import gradient, pairs

_Spectrum = tuple[Tensor, Tensor]


class LoraPro(Rule):
    """The equivalent gradient of a linear branch; of a pair in which one matrix is frozen, what the other can do of it.

    Raises `ConfigError` for a branch that learns and is not linear, and `CaptureError` for branches in shards.
    """

    edits_gradients = True

    def __init__(self, model: nn.Module, damping: float = 1e-8) -> None:
        self.model, self.damping = model, check_damping(damping)
        pairs(model)

    def before_step(self) -> None:
        """Write the gradients anew; a pair that no loss has reached is left alone."""
        found = [pair for pair in pairs(self.model).values() if not (gradient(pair.down) is None is gradient(pair.up))]
        of_up = spectra([wide(pair.up).mT @ wide(pair.up) for pair in found])
        of_down = spectra([wide(pair.down) @ wide(pair.down).mT for pair in found])
        for pair, up, down in zip(found, of_up, of_down, strict=True):
            g_up, g_down = gradient(pair.up), gradient(pair.down)
            if g_up is None or g_down is None:
                self._one_sided(pair, up, down)
                continue
            new_up, new_down = equivalent(pair, wide(g_up), wide(g_down), up, down, self.damping)
            g_up.copy_(new_up)
            g_down.copy_(new_down)

    def _one_sided(self, pair: Factors, of_up: _Spectrum, of_down: _Spectrum) -> None:
        """The nearest step that one matrix can do alone: s gU' D = G P_D, or s U gD' = P_U G."""
        if (g_up := gradient(pair.up)) is not None:
            g_up.copy_(wide(g_up) @ _inverse(of_down, self.damping) / pair.scale**2)
        if (g_down := gradient(pair.down)) is not None:
            g_down.copy_(_inverse(of_up, self.damping) @ wide(g_down) / pair.scale**2)


def equivalent(
    pair: Factors, g_up: Tensor, g_down: Tensor, of_up: _Spectrum, of_down: _Spectrum, damping: float
) -> tuple[Tensor, Tensor]:
    """(gU' [N, r], gD' [r, K]) from gU, gD and the spectra of Uᵀ U and D Dᵀ."""
    up, down, share = wide(pair.up), wide(pair.down), pair.scale**-2
    inverse_up, inverse_down = _inverse(of_up, damping), _inverse(of_down, damping)
    new_down = share * inverse_up @ g_down
    outside = g_up - up @ (inverse_up @ (up.mT @ g_up))
    free = sylvester(of_up, of_down, -new_down @ down.mT, damping)
    return share * outside @ inverse_down - up @ free, new_down + free @ down


def sylvester(left: _Spectrum, right: _Spectrum, wanted: Tensor, damping: float) -> Tensor:
    """X [r, r] of L X + X R + δ X = wanted, for symmetric L, R ≥ 0 by their spectra."""
    (left_values, left_vectors), (right_values, right_vectors) = left, right
    turned = left_vectors.mT @ wanted @ right_vectors
    return left_vectors @ (turned / (left_values[:, None] + right_values + damping)) @ right_vectors.mT


def _inverse(spectrum: _Spectrum, damping: float) -> Tensor:
    values, vectors = spectrum
    return (vectors / (values + damping)) @ vectors.mT
