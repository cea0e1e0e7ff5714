"""The recipes, and those in a file that cannot be."""

import pytest

from noble_fx import ConfigError, NobleConfig
from noble_fx.presets import PRESETS, NoblePreset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up_gain": "big"}, "up_gain='big' of a preset must be a number within ±65504"),
        ({"up_gain": True}, "up_gain=True of a preset must be a number within ±65504"),
        ({"up_gain": float("inf")}, "up_gain=inf of a preset must be a number within ±65504"),
        ({"down_bias": 1}, "down_bias=1 of a preset must be True or False"),
        ({"name": 3}, "name=3 of a preset must be a text"),
        ({"frequency_range": [1.2, 0.8]}, "must be two numbers within ±65504, the smaller one first"),
        ({"frequency_range": 1.0}, "must be two numbers within ±65504"),
        ({"phase_std": -1}, "phase_std=-1 of a preset must not be negative"),
        ({"up_gain": -0.1}, "up_gain=-0.1 of a preset must not be negative"),
        ({"mixer_gain": -0.5}, "mixer_gain=-0.5 of a preset must not be negative"),
        ({"lr_phase": -5.0}, "lr_phase=-5.0 of a preset must not be negative"),
        ({"frequency_range": [0.8, 3.4e38]}, "must be two numbers within ±65504"),
        ({"base_gain": 1e5}, "base_gain=100000.0 of a preset must be a number within ±65504"),
        ({"lr_up_exponent": 300.0}, "lr_up_exponent=300.0 of a preset must be within ±8"),
        ({"mixer_init": "zeros"}, "mixer_init='zeros' is unknown"),
        ({"colour": 1}, "preset: got an unexpected keyword argument 'colour'"),
        ({"\ud7fc": 1}, r"preset: got an unexpected keyword argument '\\ud7fc'"),
    ],
)
def test_a_preset_in_a_file_that_cannot_be(change, message):
    preset = NobleConfig(preset=NoblePreset("mine", True, False, "normal")).to_dict()["preset"]
    with pytest.raises(ConfigError, match=message):
        NobleConfig.from_dict({"preset": preset | change})
    with pytest.raises(ConfigError, match="preset: missing 3 required"):
        NobleConfig.from_dict({"preset": {"name": "mine"}})


def test_a_preset_goes_by_its_name():
    assert all(name == preset.name for name, preset in PRESETS.items())
