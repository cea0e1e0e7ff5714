"""noble_config.json: what was written is read; damage is tried in tests/test_checkpoint.py."""

import pytest
import torch

import noble_fx
from noble_fx import CheckpointError, NobleConfig
from noble_fx.checkpoints.config_file import CONFIG, Described, read, read_sites, write


@pytest.mark.parametrize("extra", [{}, {"a._extra_state": [1, None]}])
@pytest.mark.parametrize("inputs", [None, {"x": {"value": 1}}])
def test_what_is_written_is_read(inputs, extra, tmp_path):
    config = NobleConfig(rank=3, select=["a"])
    write(tmp_path / CONFIG, config.to_dict(), [], extra, inputs)
    assert read(tmp_path) == Described(config, inputs, extra, [], {"torch": torch.__version__})


def test_a_text_that_no_file_can_hold(tmp_path):
    with pytest.raises(CheckpointError, match="a name in it is no Unicode"):
        write(tmp_path / CONFIG, NobleConfig(exclude="\ud800").to_dict(), [], {}, None)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / CONFIG).write_text("{}")

    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", forbidden)
    with pytest.raises(CheckpointError, match=r"noble_config.json cannot be read: Permission denied$"):
        read(tmp_path)


def test_the_sites_are_read_back(tmp_path):
    (site,) = noble_fx.sites(torch.nn.Linear(8, 8), rank=2)
    write(tmp_path / CONFIG, NobleConfig().to_dict(), [site.to_dict()], {}, None)
    assert read_sites(tmp_path, read(tmp_path)) == (site,)


def test_a_model_without_branches_has_bases_and_no_settings(tmp_path):
    bases = {"0": {"kind": "factorized", "rank": 3, "bias": True}}
    write(tmp_path / CONFIG, None, [], {}, None, bases)
    assert read(tmp_path) == Described(None, None, {}, [], {"torch": torch.__version__}, bases)


def test_no_settings_and_no_bases_is_no_file_of_ours(tmp_path):
    write(tmp_path / CONFIG, None, [], {}, None)
    with pytest.raises(CheckpointError, match="'config' is None, which is no dictionary"):
        read(tmp_path)
