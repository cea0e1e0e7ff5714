"""Every W as one dense matrix again."""

import pytest
import torch

import noble_fx
from noble_fx import CaptureError, ConfigError
from tests.models import tiny, tokens
from tests.one_rank import fsdp2, one_rank


@pytest.mark.parametrize("capture", ["modules", "fx"])
@pytest.mark.parametrize("guide", [0.0, 0.5])
def test_the_model_computes_the_same_with_dense_weights(capture, guide):
    model = noble_fx.transform(
        tiny(), rank=2, seed=0, base="factorized", base_rank=4, guide=guide, capture=capture
    ).eval()
    noble_fx.step(model, 0.2)
    expected = model(tokens())
    assert noble_fx.merge_bases(model) is model
    torch.testing.assert_close(model(tokens()), expected)
    assert noble_fx.named_bases(model) == {}
    assert {n for n in model.state_dict() if ".noble." not in n} == set(tiny().state_dict())
    assert not any(site.base for site in noble_fx.sites(model))
    noble_fx.remove(model)
    assert type(model.blocks[0].fc1) is torch.nn.Linear


def test_what_is_saved_then_has_no_bases(tmp_path):
    model = noble_fx.merge_bases(noble_fx.transform(tiny(), rank=2, base="factorized", base_rank=4)).eval()
    noble_fx.save(model, tmp_path / "m")
    loaded = noble_fx.load(tiny(), tmp_path / "m").eval()
    assert torch.equal(loaded(tokens()), model(tokens()))
    assert noble_fx.sites(loaded) == noble_fx.sites(model)


def test_of_a_width_that_was_drawn_nothing_is_lost():
    model = noble_fx.transform(tiny(), rank=2, base="ordered").train()
    expected = {fqn: (base.up @ base.down).detach() for fqn, base in noble_fx.named_bases(model).items()}
    for base in noble_fx.named_bases(model).values():
        base.between_steps(0.1, prefix=1)
    noble_fx.merge_bases(model)
    for fqn, weight in expected.items():
        torch.testing.assert_close(model.get_submodule(fqn).weight, weight)
        assert model.get_submodule(fqn).training


def test_bases_without_branches_are_merged():
    model = noble_fx.remove(noble_fx.transform(tiny(), rank=2, base="factorized", base_rank=4)).eval()
    expected = model(tokens())
    torch.testing.assert_close(noble_fx.merge_bases(model)(tokens()), expected)


def test_where_there_are_none_or_the_model_is_sharded_it_is_an_error():
    with pytest.raises(ConfigError, match="no weight of the model has another form"):
        noble_fx.merge_bases(tiny())
    with one_rank() as mesh:
        model = fsdp2(noble_fx.transform(tiny(), rank=2, base="factorized", base_rank=4), mesh)
        with pytest.raises(CaptureError, match="change the plain model, then wrap it anew"):
            noble_fx.merge_bases(model)
