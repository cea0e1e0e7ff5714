"""Letters of σ's tensors: the paper's where they are clear, else names."""

import pytest

from noble_fx.codegen.sigma.letters import letters


@pytest.mark.parametrize(
    ("name", "letter"),
    [
        ("frequency", "ω"),
        ("first.phase", "φ₁"),
        ("third.frequency", "ω₃"),
        ("mixer.weight", "M"),
        ("mixer2.bias", "m₂"),
        ("second.mixer.weight", "M₂"),
        ("affine.scale", "s"),
        ("weight", "act_weight"),
        ("back.weight", "act_back_weight"),
        ("layers.0.phase", "act_layers_0_phase"),
    ],
)
def test_one_tensor(name, letter):
    assert letters([name]) == {name: letter}


def test_a_letter_is_never_shared():
    assert letters(["scale", "affine.scale", "shift"]) == {
        "scale": "act_scale",
        "affine.scale": "act_affine_scale",
        "shift": "c",
    }
