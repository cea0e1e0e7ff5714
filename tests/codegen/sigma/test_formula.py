"""σ's formula, from its own graph."""

import pytest
import torch
from torch import nn

from noble_fx.branches.activations import activation_names
from noble_fx.codegen.sigma.formula import formula
from tests.codegen.one_layer import Pointwise, branch_of
from tests.codegen.sigma.operators.test_structure import Mixture
from tests.samples import ACTIVATIONS, sampled


def formula_of(act, rank: int = 12, preset: str = "reference") -> list[str]:
    return list(formula(branch_of(act, rank, preset=preset).fused_form().key, rank))


@pytest.mark.parametrize(
    ("act", "line"),
    [
        ("identity", "σ(h) = h"),
        ("cos", "σ(h) = cos(ω · h + φ)"),
        ("cosnet", "σ(h) = cos(ω₂ · (cos(ω₁ · h + φ₁) Mᵀ + m) + φ₂)"),
        ("cosnet_double", "σ(h) = cos(ω₃ · (cos(ω₂ · (cos(ω₁ · h + φ₁) M₁ᵀ + m₁) + φ₂) M₂ᵀ + m₂) + φ₃)"),
        ("gelu_net", "σ(h) = gelu(gelu(h) Mᵀ + m)"),
        ("silu_scale", "σ(h) = silu(h) · s + c"),
        ("flip_gelu", "σ(h) = -gelu(-h)"),
    ],
)
def test_the_zoo_in_the_papers_letters(act, line):
    assert formula_of(act) == [line]


def test_a_recipe_without_mixer_bias_has_none():
    assert formula_of("cosnet", preset="paper") == ["σ(h) = cos(ω₂ · (cos(ω₁ · h + φ₁) Mᵀ) + φ₂)"]


@pytest.mark.parametrize("act", sampled(activation_names(), ACTIVATIONS))
def test_every_activation_ends_in_sigma(act):
    *locals_, last = formula_of(act)
    assert last.startswith("σ(h) = ")
    assert all(line.split(" = ")[0] in "uvwzpqg" for line in locals_)


def test_what_is_used_twice_gets_a_letter_before_it_is_used():
    assert formula_of("swiglu") == ["u = h Mᵀ + m", "σ(h) = silu(u[.., 0:12]) · u[.., 12:24]"]


def test_names_without_a_letter_stand_for_themselves():
    *_, back, last = formula_of(Mixture)
    assert back.endswith("act_back_weightᵀ")
    assert last == "σ(h) = where(act_keep, v · s, v + act_row) + act_shared"


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda h: 1 - 2 * h, "1 - h · 2"),
        (lambda h: h - (h - 1), "h - (h - 1)"),
        (lambda h: h / (2 * h.exp()), "h / (exp(h) · 2)"),
        (lambda h: (h + 1) ** 3, "(h + 1)³"),
        (lambda h: (h * h + 1) ** -2, "(h · h + 1)^(-2)"),
        (lambda h: torch.rsub(h, 2.0, alpha=0.5), "2 - 0.5 · h"),
        (lambda h: torch.add(h, h.sin(), alpha=0.5), "h + 0.5 · sin(h)"),
        (lambda h: torch.where(h > 0.2, h, h * 0.5), "where(h > 0.2, h, h · 0.5)"),
        (lambda h: h.clamp(min=-0.3), "clamp(h, -0.3)"),
        (lambda h: torch.cat([h[..., 6:], h[..., :6].cos()], -1), "[h[.., 6:12], cos(h[.., 0:6])]"),
        (lambda h: h[..., :].sin(), "sin(h)"),
        (nn.functional.logsigmoid, "log_sigmoid_forward(h)"),
        (torch.lgamma, "lgamma(h)"),  # no kernel has it, its formula is the same
    ],
)
def test_precedence_and_pieces(function, line):
    assert formula_of(lambda rank: Pointwise(function)) == [f"σ(h) = {line}"]


class Repeated(nn.Module):
    """A chain whose every value is used twice: written out it would have 2¹² terms."""

    def forward(self, h):
        for _ in range(12):
            h = h.sin() * h.cos() * 0.5 + 0.1
        return h


def test_a_long_chain_stays_short():
    lines = formula_of(lambda rank: Repeated())
    assert len(lines) == 12
    assert sum(map(len, lines)) < 500
    assert len({line.split(" = ")[0] for line in lines}) == 12
