"""The two files of a LoRA folder: read to plain values, and written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from noble_fx.checkpoints.peft_folder import CONFIG, WEIGHTS, Lora, PeftAdapter, read, write
from noble_fx.errors import CheckpointError

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "target_modules": ["q"]}


def folder_of(path: Path, tensors: dict | None = None, **settings: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps({**SETTINGS, **settings}))
    usual = {
        "base_model.model.a.q.lora_A.weight": torch.randn(2, 6),
        "base_model.model.a.q.lora_B.weight": torch.randn(4, 2),
    }
    save_file(usual if tensors is None else tensors, str(path / WEIGHTS))
    return path


def test_what_it_says(tmp_path):
    found = read(folder_of(tmp_path / "a", lora_dropout=0.1))
    assert list(found.layers) == ["a.q"]
    assert (found.layers["a.q"].alpha, found.rslora, found.dropout) == (4.0, False, 0.1)


@pytest.mark.parametrize("pattern", ["q", "a.q", r"a\.q", ".*q"])
def test_patterns_are_the_end_of_a_name(pattern, tmp_path):
    assert (
        read(folder_of(tmp_path / "a", r=8, rank_pattern={pattern: 2}, alpha_pattern={pattern: 7})).layers["a.q"].alpha
        == 7
    )


def test_what_is_written_is_read(tmp_path):
    layers = {
        f"layers.{i}.q": Lora(torch.randn(r, 6), torch.randn(4, r), a)
        for i, (r, a) in enumerate(((2, 4), (3, 4), (2, 5)))
    }
    write(tmp_path, PeftAdapter(layers, True, 0.1), ["k"], False, None)
    again = read(tmp_path)
    assert (again.rslora, again.dropout) == (True, 0.1)
    for name, lora in layers.items():
        assert torch.equal(again.layers[name].down, lora.down)
        assert torch.equal(again.layers[name].up, lora.up)
        assert again.layers[name].alpha == lora.alpha


def test_a_name_that_is_the_end_of_another_is_written_as_a_pattern(tmp_path):
    layers = {"q": Lora(torch.randn(2, 6), torch.randn(4, 2), 4)}
    write(tmp_path, PeftAdapter(layers, True, 0.0), ["a.q"], False, None)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == "q"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "RANDLORA"}, "peft_type is RANDLORA, and LORA is read. peft's convert_to_lora"),
        ({"use_dora": True}, "use_dora is set, and a plain LoRA is read. peft's convert_to_lora"),
        ({"modules_to_save": ["head"]}, "modules_to_save is set"),
        ({"a_new_thing": {"x": 1}}, "a_new_thing is set"),
        ({"bias": "all"}, "bias=all has biases of the model itself"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa changes the weights"),
        ({"r": 3}, "a.q has rank 2, and adapter_config.json says 3"),
        ({"lora_alpha": 0}, "alpha of a.q is 0"),
        ({"rank_pattern": {"(": 2}}, "has rank 2, and adapter_config.json says None"),
        ({"rank_pattern": [2]}, "rank_pattern is no dictionary"),
    ],
)
def test_settings_that_are_refused_by_name(settings, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        read(folder_of(tmp_path / "a", **settings))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"base_model.model.q.lora_A.weight": torch.randn(2, 6)}, "q has a lora_A alone"),
        ({"base_model.model.q.lora_magnitude_vector": torch.randn(2)}, "is no part of a LoRA on a linear layer"),
        ({}, "is empty"),
        (
            {
                "base_model.model.q.lora_A.weight": torch.randn(2, 6),
                "base_model.model.q.lora_B.weight": torch.randn(4, 3),
            },
            r"has A \[2, 6\] and B \[4, 3\], which do not fit",
        ),
    ],
)
def test_tensors_that_do_not_fit(tensors, reason, tmp_path):
    with pytest.raises(CheckpointError, match=reason):
        read(folder_of(tmp_path / "a", tensors))


def test_a_pickle_and_nothing_and_noise(tmp_path):
    folder = folder_of(tmp_path / "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle, which runs code"):
        read(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors does not exist"):
        read(folder)
    (folder / WEIGHTS).write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json cannot be read"):
        read(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        read(tmp_path / "nowhere")
