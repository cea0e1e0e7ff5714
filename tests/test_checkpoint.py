import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import noble_fx
from noble_fx import CheckpointError
from noble_fx.bases.low_rank import LowRank
from noble_fx.branches import activations
from noble_fx.layers.restructure import structure
from tests.models import Tiny, WithOptional, loud, tiny, tokens, transformed


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "saved"
    noble_fx.save(transformed("fx"), path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A saved model, for a test to change."""
    return Path(shutil.copytree(saved, tmp_path / "saved"))


@pytest.mark.parametrize("make", [lambda: transformed("fx"), lambda: transformed("modules")], ids=["fx", "modules"])
def test_round_trip(make, tmp_path):
    model = make()
    noble_fx.save(model, tmp_path / "saved")
    again = noble_fx.load(Tiny().eval(), tmp_path / "saved")
    assert type(again).__mro__[1] is type(model).__mro__[1]
    assert torch.equal(again(tokens()), model(tokens()))
    assert noble_fx.sites(again) == noble_fx.sites(model)
    files = sorted((tmp_path / "saved").iterdir())
    assert [file.name for file in files] == ["model.safetensors", "noble_config.json"]
    assert files[0].stat().st_mode == files[1].stat().st_mode


def test_every_setting_comes_back(tmp_path):
    settings = {"rank": 0.25, "act": "gelu_net", "preset": "reference", "rank_pattern": {"fc1": 5}, "exclude": "k_proj"}
    model = loud(noble_fx.transform(WithOptional().eval(), **settings))
    noble_fx.save(model, tmp_path / "saved")
    again = noble_fx.load(WithOptional().eval(), tmp_path / "saved")
    assert torch.equal(again(tokens()), model(tokens()))
    assert noble_fx.sites(again) == noble_fx.sites(model)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    def make():
        model = tiny(width=20)
        model.head.weight = model.embed.weight
        return model

    model = loud(noble_fx.transform(make(), rank=4))
    noble_fx.save(model, tmp_path / "saved")
    assert len({"head.weight", "embed.weight"} & set(load_file(tmp_path / "saved" / "model.safetensors"))) == 1
    again = noble_fx.load(make(), tmp_path / "saved")
    assert again.head.weight is again.embed.weight
    assert torch.equal(again(tokens()), model(tokens()))


def test_a_layer_with_two_names(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.second = self.first

        def forward(self, x, scale=1.0):
            return self.second(self.first(x)) * scale

    model, x = loud(noble_fx.transform(Twice(), rank=2)), torch.randn(3, 8)
    noble_fx.save(model, tmp_path / "saved")
    assert torch.equal(noble_fx.load(Twice(), tmp_path / "saved")(x), model(x))


WRAPPED = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "averaged": AveragedModel,
    "nested": lambda model: nn.DataParallel(torch.compile(AveragedModel(model), backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_wrapped_model_is_saved_as_the_model_inside(wrap, tmp_path):
    model = transformed("modules")
    noble_fx.save(WRAPPED[wrap](model), tmp_path / "saved")
    again = noble_fx.load(Tiny().eval(), tmp_path / "saved")
    assert torch.equal(again(tokens()), model(tokens()))
    assert noble_fx.sites(again) == noble_fx.sites(model)


def test_parts_that_are_wrapped_have_their_own_names_in_the_folder(tmp_path):
    model = transformed("modules")
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    noble_fx.save(model, tmp_path / "saved")
    again = noble_fx.load(Tiny().eval(), tmp_path / "saved")
    assert torch.equal(again(tokens()), model(tokens()))
    saved = json.loads((tmp_path / "saved" / "noble_config.json").read_text())["sites"]
    assert {site["fqn"] for site in saved} == {site.fqn for site in noble_fx.sites(again) if site.selected}


def test_views_of_one_buffer(tmp_path):
    def make():
        model = tiny()
        flat = torch.cat([p.detach().reshape(-1) for p in model.blocks[0].parameters()]).clone()
        at = 0
        for p in model.blocks[0].parameters():  # as nn.LSTM.flatten_parameters does on a GPU
            p.data, at = flat[at : at + p.numel()].view(p.shape), at + p.numel()
        return model

    model = loud(noble_fx.transform(make(), rank=4))
    noble_fx.save(model, tmp_path / "saved")
    for plain in (make(), tiny(seed=1)):
        assert torch.equal(noble_fx.load(plain, tmp_path / "saved")(tokens()), model(tokens()))


def test_an_existing_path_is_refused_unless_told(folder):
    model = loud(transformed("fx"))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists; remove it, choose another path, or pass overwrite=True"):
        noble_fx.save(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    noble_fx.save(noble_fx.transform(tiny(), rank=2), folder, overwrite=True)
    assert len(list(folder.parent.iterdir())) == 1
    assert json.loads((folder / "noble_config.json").read_text())["config"]["rank"] == 2


@pytest.mark.parametrize("stranger", ["thesis.txt", "sub/model.safetensors", ".hidden"])
def test_a_folder_with_anything_else_is_not_replaced(stranger, folder):
    (folder / stranger).parent.mkdir(exist_ok=True)
    (folder / stranger).write_text("mine")
    before = (folder / "model.safetensors").read_bytes()
    message = f"is not replaced, for {stranger.split('/')[0]}, which noble_fx.save did not write, would be lost"
    with pytest.raises(CheckpointError, match=message):
        noble_fx.save(transformed("modules"), folder, overwrite=True)
    assert (folder / stranger).read_text() == "mine"
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "model.safetensors").write_text("somebody's")
    with pytest.raises(CheckpointError, match=r"model.safetensors without a noble_config.json would be lost"):
        noble_fx.save(transformed("modules"), tmp_path, overwrite=True)
    (tmp_path / "model.safetensors").unlink()
    noble_fx.save(transformed("modules"), tmp_path, overwrite=True)  # an empty one holds nothing to lose
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_to_a_folder_stays_one(tmp_path):
    noble_fx.save(transformed("modules"), tmp_path / "disk" / "saved")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "saved")
    noble_fx.save(noble_fx.transform(tiny(), rank=2), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "disk" / "saved" / "noble_config.json").read_text())["config"]["rank"] == 2


def test_an_interrupted_save_leaves_the_old_folder(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("noble_fx.checkpoints.config_file.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        noble_fx.save(noble_fx.transform(tiny(), rank=2), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_an_unwritable_path_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write beside .*choose another path"):
        noble_fx.save(transformed("fx"), tmp_path / "file" / "saved")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("noble_fx.checkpoints.weights_file.save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device; nothing was left there"):
        noble_fx.save(transformed("fx"), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="carries no branches"):
        noble_fx.save(tiny(), tmp_path / "saved")
    with pytest.raises(CheckpointError, match="register_activation"):
        noble_fx.save(noble_fx.transform(tiny(), rank=4, act=lambda r: nn.Softplus()), tmp_path / "saved")
    with torch.device("meta"):
        model = noble_fx.transform(Tiny(), rank=4)
    with pytest.raises(CheckpointError, match="on the meta device"):
        noble_fx.save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def check_refused(folder, message, model=None):
    """load() raises with `message` and leaves the model as it was."""
    model = model or tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        noble_fx.load(model, folder)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_of_another_size(folder):
    check_refused(
        folder, r"blocks.0.q_proj.weight is \[16, 16\] in the file and \[24, 24\] in the model", tiny(width=24)
    )
    check_refused(folder, r"blocks.1.fc1.bias is not in the model.*and \d+ more", tiny(layers=1))
    check_refused(folder, r"blocks.2.norm.weight is not in the file", tiny(layers=3))


def test_a_config_of_another_rank(folder):
    path = folder / "noble_config.json"
    path.write_text(path.read_text().replace('"rank": 4', '"rank": 5', 1))
    check_refused(folder, r"blocks.0.q_proj.noble.down is \[4, 16\] in the file and \[5, 16\] in the model")


def test_missing_and_unexpected_keys(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["blocks.0.fc1.noble.up"]
    state["stranger"] = torch.zeros(1)
    save_file(state, path)
    check_refused(folder, "stranger is not in the model; blocks.0.fc1.noble.up is not in the file")


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    check_refused(folder, "is truncated or no safetensors file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a config of noble_fx.save"),
        ("{}", "is not a config of noble_fx.save: 'format' is missing"),
        ("[1]", "'format' is missing"),
        ('{"format": [1]}', r"has format \[1\]; this version reads 1"),
        ('{"format": 1}', "'config' is None, which is no dictionary"),
        ('{"format": 1, "config": []}', r"'config' is \[\], which is no dictionary"),
        ('{"format": 1, "config": {}, "inputs": 3}', "'inputs' is 3, which is no dictionary"),
        ('{"format": 1, "config": {}, "extra_state": null}', "'extra_state' is None, which is no dictionary"),
        ('{"format": 1, "config": {"rank": 4, "rank": 4}}', "rank stands in it twice"),
        ('{"format": 1, "config": {"rank": NaN}}', "NaN is no number of JSON"),
        ("[" * 100000, "it is nested too deeply"),
        ('{"format": 1, "config": {"select": [3]}}', "select=.* must be one of"),
        ('{"format": 1, "config": {"preset": {"name": 3}}}', "preset: missing"),
        ('{"format": 99}', "has format 99; this version reads 1: update noble_fx"),
        ('{"format": 1, "config": {"rank": -1}}', "rank=-1 is not a rank"),
        ('{"format": 1, "config": {"colour": 1}}', "'colour' is not a setting"),
        ('{"format": 1, "config": {"act": "mine"}}', "does not fit this model: act='mine' is unknown"),
    ],
)
def test_a_config_that_cannot_be_used(folder, text, message):
    (folder / "noble_config.json").write_text(text)
    check_refused(folder, message)


DAMAGED_INPUTS = [{"idx": 3}, {"idx": {"tensor": "x"}}, {"idx": {"tensor": [2**62], "dtype": "int64", "dynamic": []}}]


@pytest.mark.parametrize("inputs", DAMAGED_INPUTS)
def test_inputs_that_cannot_be_read(inputs, tmp_path):
    made = noble_fx.transform(tiny(), rank=4, capture="export", example_inputs=(tokens(),))
    noble_fx.save(made, tmp_path / "saved")
    path = tmp_path / "saved" / "noble_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": inputs}))
    check_refused(tmp_path / "saved", "is not a config of noble_fx.save: inputs: ")


def test_inputs_that_were_not_stored_are_asked_for(tmp_path):
    made = noble_fx.transform(tiny(), rank=4, capture="export", example_inputs=(tokens(),))
    noble_fx.save(made, tmp_path / "saved")
    path = tmp_path / "saved" / "noble_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inputs": None}))
    with pytest.raises(CheckpointError, match=r"none were given as example_inputs=.*\}$"):
        noble_fx.load(tiny(), tmp_path / "saved")
    again = noble_fx.load(tiny(), tmp_path / "saved", example_inputs=(tokens(),))
    assert torch.equal(again(tokens()), made(tokens()))


def test_files_that_are_not_there(folder):
    check_refused(folder / "nowhere", "noble_config.json does not exist")
    (folder / "model.safetensors").unlink()
    check_refused(folder, "model.safetensors does not exist")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_dtype(dtype, folder):
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    check_refused(folder, rf"embed.weight is {dtype} in the file and torch.float32 in the model.*and \d+ more")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_floating_dtype_are_rounded_to_the_models(dtype, folder):
    path = folder / "model.safetensors"
    saved = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(saved, path)
    state = noble_fx.load(tiny(), folder).state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in saved.items())


def test_values_that_the_model_cannot_hold(folder):
    path = folder / "model.safetensors"
    saved = load_file(path)
    saved["head.bias"][3] = 1e6
    saved["blocks.0.fc1.noble.up"][0, 0] = -1e6
    saved["embed.weight"][0, 0] = torch.inf  # which float16 has
    save_file(saved, path)
    message = "blocks.0.fc1.noble.up has values beyond torch.float16 of the model; head.bias has values"
    check_refused(folder, message, tiny().half())


def test_one_tensor_of_the_model_is_one_in_the_file(folder):
    model = noble_fx.transform(tiny(width=20), rank=4)
    noble_fx.save(model, folder, overwrite=True)
    plain = tiny(width=20)
    plain.head.weight = plain.embed.weight
    check_refused(folder, "embed.weight and head.weight are one tensor in the model, and two in the file", plain)


class Scaled(nn.Module):
    """A layer, and extra state of any kind."""

    def __init__(self, extra=0.0):
        super().__init__()
        self.linear, self.extra = nn.Linear(8, 8), extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


@pytest.mark.parametrize("extra", [None, {"steps": [1, 2]}, torch.arange(3, dtype=torch.uint8)])
def test_extra_state_comes_back(extra, tmp_path):
    noble_fx.save(noble_fx.transform(Scaled(extra), rank=2), tmp_path / "saved")
    again = noble_fx.load(Scaled(), tmp_path / "saved")
    assert torch.equal(again.extra, extra) if isinstance(extra, torch.Tensor) else again.extra == extra


def test_extra_state_that_only_one_of_both_has(folder, tmp_path):
    noble_fx.save(noble_fx.transform(Scaled(3), rank=2), tmp_path / "extra")
    with pytest.raises(CheckpointError, match="_extra_state is not in the model"):
        noble_fx.load(nn.ModuleDict({"linear": nn.Linear(8, 8)}), tmp_path / "extra")
    noble_fx.save(noble_fx.transform(nn.ModuleDict({"linear": nn.Linear(8, 8)}), rank=2), tmp_path / "none")
    with pytest.raises(CheckpointError, match="_extra_state is not in the file"):
        noble_fx.load(Scaled(), tmp_path / "none")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_while_filling_leaves_the_model_as_it_was(error, tmp_path):
    noble_fx.save(noble_fx.transform(Scaled("bad"), rank=2), tmp_path / "saved")

    class Failing(Scaled):
        def set_extra_state(self, state):
            self.extra = state
            if state == "bad":
                raise error("a state that nobody takes\nand more lines")

    model = Failing({"mine": 1})
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(CheckpointError if error is RuntimeError else error) as caught:
        noble_fx.load(model, tmp_path / "saved")
    if error is RuntimeError:
        assert str(caught.value).endswith("could not be read into the model: a state that nobody takes")
    assert model.extra == {"mine": 1}
    assert [name for name, _ in model.named_parameters()] == list(before)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert type(model.linear) is nn.Linear


@pytest.mark.parametrize(("wrap", "name"), [("compiled", "torch.compile"), ("DataParallel", "DataParallel")])
def test_a_wrapped_model_is_not_loaded_into(wrap, name, folder):
    with pytest.raises(CheckpointError, match=rf"wrapped or sharded already \({name}\); load into the plain model"):
        noble_fx.load(WRAPPED[wrap](tiny()), folder)


def test_parts_that_are_wrapped_are_loaded_into(tmp_path):
    folder = noble_fx.save(transformed("modules"), tmp_path / "saved")
    model = tiny()
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    assert torch.equal(noble_fx.load(model, folder)(tokens()), noble_fx.load(tiny(), folder)(tokens()))


def test_names_in_a_file_are_printed_on_one_line(folder):
    path = folder / "model.safetensors"
    save_file({**load_file(path), "a\n\x1b[31m": torch.zeros(1)}, path)
    check_refused(folder, r"a\\n\\x1b\[31m is not in the model")


@pytest.mark.parametrize("path", ["a\0b", "\udcff", "x\ud800", "x" * 5000, None, 5, b"x"])
def test_paths_that_are_none(path, tmp_path):
    model = noble_fx.transform(tiny(), rank=4)
    place = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(CheckpointError) as caught:
        noble_fx.load(tiny(), place)
    assert str(caught.value).isprintable()
    with pytest.raises(CheckpointError) as caught:
        noble_fx.save(model, place)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "noble_config.json"])
def test_a_folder_in_a_files_place(name, folder):
    (folder / name).unlink()
    (folder / name).mkdir()
    check_refused(folder, f"{name} is a folder; a folder made by noble_fx.save has one")


def test_a_file_in_the_folders_place(folder):
    check_refused(folder / "noble_config.json", "noble_config.json/noble_config.json does not exist")


def test_loading_twice_is_refused(folder):
    model = noble_fx.load(tiny(), folder)
    with pytest.raises(CheckpointError, match="already carries branches"):
        noble_fx.load(model, folder)


def test_a_registered_activation_is_needed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "_USER", {})
    noble_fx.register_activation("softplus", lambda rank: nn.Softplus())
    model = loud(noble_fx.transform(tiny(), rank=4, act="softplus"))
    noble_fx.save(model, tmp_path / "saved")
    assert torch.equal(noble_fx.load(tiny(), tmp_path / "saved")(tokens()), model(tokens()))
    monkeypatch.setattr(activations, "_USER", {})
    check_refused(tmp_path / "saved", "act='softplus' is unknown")


def test_meta_models_are_told_what_to_do(folder):
    with torch.device("meta"):
        model = Tiny()
    with pytest.raises(CheckpointError, match=r"call model.to_empty"):
        noble_fx.load(model, folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "model"), [("fx", Tiny), ("modules", WithOptional), ("export", Tiny)])
def test_a_folder_of_version_0_1_loads_and_computes_what_it_did(name, model):
    folder = Path(__file__).parent / "data" / "checkpoints_0_1" / name
    loaded = noble_fx.load(model(width=8, layers=1).eval(), folder).eval()
    expected = load_file(folder / "expected.safetensors")["y"]
    torch.testing.assert_close(loaded(tokens()), expected, rtol=1e-5, atol=1e-6)
    assert {site.fqn: site.rank for site in noble_fx.sites(loaded) if site.selected} == {
        site["fqn"]: site["rank"] for site in json.loads((folder / "noble_config.json").read_text())["sites"]
    }


def test_a_whole_model_is_a_pickle_and_its_state_is_not(tmp_path):
    model = transformed("modules")
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        torch.load(tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert list(torch.load(tmp_path / "state.pt")) == list(model.state_dict())


def test_a_folder_is_not_replaced_for_a_text_that_says_no(tmp_path):
    noble_fx.save(transformed(), tmp_path / "saved")
    with pytest.raises(CheckpointError, match="overwrite='no' must be True or False"):
        noble_fx.save(transformed(), tmp_path / "saved", overwrite="no")


def _compressed(model):
    for layer in (model[0], model[2]):
        base = LowRank(layer.in_features, layer.out_features, 2)
        base.fill(layer.weight)
        structure(layer, base, layer.bias)
    return model


def _three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))


@pytest.mark.parametrize("branches", [False, True])
def test_weights_of_another_form_are_saved_and_loaded(branches, tmp_path):
    model = _compressed(_three())
    if branches:
        noble_fx.transform(model, rank=2, select="all", seed=0)
    noble_fx.save(model, tmp_path / "m")
    loaded = noble_fx.load(_three(), tmp_path / "m")
    x = torch.randn(3, 8)
    assert torch.equal(loaded(x), model(x))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    assert "W is factorized" in str(noble_fx.explain(loaded))


def test_a_model_that_does_not_fit_a_compressed_folder_is_as_it_was(tmp_path):
    noble_fx.save(_compressed(_three()), tmp_path / "m")
    other = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 9))
    with pytest.raises(noble_fx.CheckpointError, match="does not fit this model"):
        noble_fx.load(other, tmp_path / "m")
    assert [type(m) for m in other] == [nn.Linear, nn.ReLU, nn.Linear]
    assert list(other.state_dict()) == list(_three().state_dict())
