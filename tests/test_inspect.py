"""`sites` and `programs`: of plain, captured and compiled models."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.captures import Examples
from noble_fx.inspect import known_programs
from tests.models import WithOptional, loud, tiny, tokens, transformed


def plan(model: nn.Module, **settings) -> tuple[noble_fx.Site, ...]:
    return noble_fx.transform(model, rank=4, dry_run=True, **settings)


@pytest.mark.parametrize("capture", ["auto", "modules", "fx"])
def test_sites_of_a_plain_model_are_those_that_transform_would_choose(capture):
    assert noble_fx.sites(tiny(), rank=4, capture=capture) == plan(tiny(), capture=capture)


@pytest.mark.parametrize("capture", ["modules", "fx", "export"])
def test_sites_of_a_transformed_model_are_what_it_carries(capture):
    examples = {"example_inputs": (tokens(),)} if capture == "export" else {}
    expected = plan(tiny(), capture=capture, **examples)
    sites = noble_fx.sites(transformed(capture, **examples))
    assert [(s.fqn, s.role, s.rank, s.selected) for s in sites] == [
        (s.fqn, s.role, s.rank, s.selected) for s in expected
    ]
    assert sum(site.selected for site in sites) == 12


def test_an_unsuitable_model_is_listed_and_not_refused():
    sites = noble_fx.sites(nn.Sequential(nn.Linear(4, 4)), rank=64)
    assert [(site.fqn, site.selected) for site in sites] == [("0", False)]
    assert "64" in sites[0].reason
    with pytest.raises(ConfigError, match="'ranks' is not a setting"):
        noble_fx.sites(tiny(), ranks=4)
    with pytest.raises(CaptureError, match="already compiled"):
        noble_fx.sites(torch.compile(tiny()))


def test_a_model_that_is_one_layer_is_its_own_site():
    model = noble_fx.transform(nn.Linear(8, 8), rank=2)
    (site,) = noble_fx.sites(model)
    assert (site.fqn, site.rank, site.selected) == ("", 2, True)
    assert "NobleLinear: 1 of 1 linear maps carry a branch" in str(noble_fx.explain(model))
    assert list(noble_fx.explain(model).to_networkx()) == [""]


def test_modes_say_what_each_program_is():
    torch._dynamo.reset()
    model = transformed("modules")
    assert [program.mode for program in noble_fx.programs(model)] == ["looking"]
    torch.compile(model, backend="noble_fx", options={"then": "eager"})(tokens())
    assert [program.mode for program in noble_fx.programs(model)] == ["looking", "compiled"]
    assert [program.mode for program in noble_fx.programs(transformed("fx"))] == [""]
    exported = transformed("export", example_inputs=(tokens(),))
    assert [program.mode for program in noble_fx.programs(exported)] == ["train", "eval"]


def test_no_graph_is_a_reason_for_explain_and_an_error_for_programs():
    model = loud(noble_fx.transform(WithOptional().eval(), rank=4))
    programs, without = known_programs(model, Examples())
    assert programs == ()
    assert "optional argument 'scale'" in without.reason
    with pytest.raises(CaptureError, match="optional argument 'scale'"):
        noble_fx.programs(model)
    torch._dynamo.reset()
    torch.compile(model, backend="noble_fx", options={"then": "eager"})(tokens())
    assert [program.mode for program in noble_fx.programs(model)] == ["compiled"]  # then there is one to show


def shared(model: nn.Module, mode: str) -> list[tuple[str, ...]]:
    return [names for program in noble_fx.programs(model) if program.mode == mode for names in program.shared]


PAIRS = [("blocks.0.q_proj", "blocks.0.v_proj"), ("blocks.1.q_proj", "blocks.1.v_proj")]


def test_the_sites_of_each_group_have_their_names():
    assert shared(transformed("fx"), "") == PAIRS
    assert shared(transformed("export", example_inputs=(tokens(),)), "eval") == PAIRS
    torch._dynamo.reset()
    model = transformed("modules")
    assert shared(model, "looking") == PAIRS
    torch.compile(model, backend="noble_fx", options={"then": "eager"})(tokens())
    assert shared(model, "compiled") == PAIRS


def test_a_group_inside_a_captured_part_has_its_names_in_the_whole_model():
    whole = nn.ModuleDict({"part": transformed("fx")})
    assert shared(whole, "") == [tuple(f"part.{name}" for name in pair) for pair in PAIRS]
