"""The model that a command line names; `test_cli.py` has how the commands tell what is wrong with it."""

import os
import sys
from pathlib import Path

import pytest
import torch

from noble_fx.errors import ConfigError
from noble_fx.model_spec import build_model, is_written


def test_a_factory_is_called_on_the_device():
    model = build_model("tests.models:tiny")
    assert type(model).__name__ == "Tiny"
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.device.type for p in build_model("tests.models:tiny", device="cpu").parameters()} == {"cpu"}


def test_the_current_folder_is_importable_for_that_time_alone(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("import torch\nmake = torch.nn.ReLU\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(build_model("only_here:make"), torch.nn.ReLU)
    assert os.getcwd() not in sys.path
    del sys.modules["only_here"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "must be package.module:factory or hf:CONFIG.json"),
        ("no_such_module:make", "cannot import 'no_such_module' for the model"),
        ("tests.models:nothing", "module 'tests.models' has no 'nothing'"),
        ("tests.test_cli:not_a_model", "gave int, not an nn.Module"),
        ("tests.models:Tiny.forward", "has no 'Tiny.forward'"),
        ("tests.models:Block", "cannot be called without arguments"),
        ("hf:nowhere.json", "there is no such file"),
    ],
)
def test_what_names_no_model_is_one_error(spec, message):
    with pytest.raises(ConfigError) as error:
        build_model(spec)
    assert message in str(error.value)


@pytest.mark.parametrize("spec", ["m.onnx", "tests"])
def test_a_file_holds_no_code(spec, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert is_written(spec)
    with pytest.raises(ConfigError, match=f"{spec} is a file or folder, which holds no model's code"):
        build_model(spec)


def test_a_factory_is_no_file():
    assert not is_written("tests.models:tiny")
