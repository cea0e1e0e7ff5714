"""Linear maps beside the branches of a model that has some."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.bases.low_rank import LowRank
from noble_fx.branches.lora import LoraBranch
from noble_fx.distributed import whole
from noble_fx.layers.restructure import matrix_of, structure
from noble_fx.wrappers import own_name
from tests.models import tokens, transformed
from tests.one_rank import PARALLEL, one_rank
from tests.ranks import on_ranks


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12), nn.Linear(12, 6))


def noble(**settings: object) -> nn.Sequential:
    return noble_fx.transform(plain(), rank=4, select=["0", "2"], seed=0, **settings)


def fill(model: nn.Module) -> nn.Module:
    """The model with adapters that matter, the same ones each time."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".adapters." in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def adapted(model: nn.Module, **settings: object) -> nn.Module:
    return noble_fx.transform(model, branch="lora", **{"rank": 2, "select": "all", "seed": 1, "alpha": 1, **settings})


def test_the_model_starts_as_it_was():
    model, x = noble().double(), torch.randn(5, 12, dtype=torch.float64)
    before, keys = model(x), list(model.state_dict())
    assert adapted(model) is model
    torch.testing.assert_close(model(x), before, rtol=1e-14, atol=1e-14)
    assert [key for key in model.state_dict() if ".adapters." not in key] == keys
    assert all(".adapters." in name for name, p in model.named_parameters() if p.requires_grad)
    assert isinstance(model[3].noble, LoraBranch)
    assert [site.unfused for site in noble_fx.sites(model)] == ["", "", ""]


def test_the_base_and_the_layers_alone_are_there_all_the_same():
    model, x = fill(adapted(noble())), torch.randn(5, 12)
    with noble_fx.disabled(model):
        assert torch.equal(model(x), plain()(x))
    assert torch.equal(noble_fx.remove(model)(x), plain()(x))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(again):
    model, x = fill(adapted(noble())), torch.randn(5, 12)
    copied = again(model)
    assert torch.equal(copied(x), model(x))
    noble_fx.use_adapters(copied, None)
    assert not torch.equal(copied(x), model(x))
    assert torch.equal(copied(x), noble()(x))


def test_sites_explain_and_groups_account_for_it():
    model = adapted(noble())
    sites = noble_fx.sites(model)
    assert [site.rank for site in sites] == [4, 4, 2]
    assert all("adapters: default r 2" in site.reason for site in sites)
    assert sites[0].params == sum(p.numel() for p in model[0].noble.parameters())
    assert "act: cosnet" in str(noble_fx.explain(model))
    assert [group["name"] for group in noble_fx.param_groups(model, lr=1e-3)] == ["lora.down ×1", "lora.up ×1"]


def test_a_dry_run_changes_nothing():
    model = noble()
    sites = noble_fx.transform(model, branch="lora", rank=2, select=["0", "3"], dry_run=True)
    assert [(site.fqn, site.rank) for site in sites if site.selected] == [("0", 2), ("3", 2)]
    assert not any(".adapters." in key for key in model.state_dict())


def test_a_second_adapter_and_the_function_stays():
    model, x = fill(adapted(noble())), torch.randn(5, 12)
    before = model(x)
    adapted(model, adapter="more", select=["2"])
    assert torch.equal(model(x), before)
    assert list(model[2].noble.adapters.named()) == ["default", "more"]


def test_a_factorized_weight():
    model = noble()
    base = LowRank(12, 20, 5)
    base.fill(matrix_of(model[0]))
    structure(model[0], base, model[0].bias)
    fill(adapted(model, select=["0"])).double()
    x = torch.randn(5, 12, dtype=torch.float64)
    assert model[0].noble.unfused == ""
    torch.testing.assert_close(model[0](x), base(x, model[0].bias) + model[0].noble(x), rtol=1e-12, atol=1e-12)


def test_graphs_of_such_a_model():
    model, x = fill(adapted(noble())).eval(), torch.randn(5, 12)
    (looking,) = noble_fx.programs(model)
    calls = [node for node in looking.graph_module.graph.nodes if node.target is torch.ops.noble_fx.linear.default]
    assert len(calls) == 3
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_compiled_and_switched_without_another_trace():
    model, x = fill(adapted(noble())).requires_grad_(False), torch.randn(5, 12)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        for weights in ("default", None, {"default": 0.5}):
            noble_fx.use_adapters(model, weights)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1
    torch._dynamo.reset()


class Attention(nn.Module):
    """q, k and v of one input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)


def test_sites_of_one_input_share_a_call():
    model = noble_fx.transform(Attention(), rank=4, select="all", seed=0, preset="reference")
    fill(adapted(model)).double()
    (looking,) = noble_fx.programs(model)
    assert looking.shared == (("q", "k", "v"),)
    torch._dynamo.reset()
    x = torch.randn(5, 12, dtype=torch.float64)
    compiled = torch.compile(model, backend="noble_fx", options={"then": "aot_eager"})
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-12)
    (program,) = [program for program in noble_fx.programs(model) if program.mode == "compiled"]
    assert program.shared == (("q", "k", "v"),)
    noble_fx.explain(model, x).to_dict()
    torch._dynamo.reset()


def test_it_trains_and_moves_nothing_else():
    model, x = adapted(noble()), torch.randn(32, 12)
    adapted(model, adapter="off", select=["0"])
    noble_fx.use_adapters(model, "default")
    nn.init.normal_(model[0].noble.adapters.off.up)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(noble_fx.param_groups(model, lr=1e-2, weight_decay=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if ".adapters.default." in key}


def test_a_kind_that_takes_none_is_left_out_by_name():
    class Own(noble_fx.Branch):
        kind = "own"

        def __init__(self, in_features, out_features, rank, config, role="other"):
            super().__init__(in_features, out_features, rank, config, role)
            self.weight = nn.Parameter(torch.randn(out_features, in_features))

        def reset_parameters(self):
            nn.init.normal_(self.weight)

        def forward(self, x, rows=None):
            return nn.functional.linear(x, self.weight if rows is None else self.weight[rows])

    model = noble_fx.transform(plain(), rank=2, branch=Own, select=["0"])
    assert "kind 'own' do not take adapters" in adapted(model, dry_run=True)[0].reason
    with pytest.raises(ConfigError, match="select names '0', which cannot have an adapter"):
        adapted(model, select=["0"])


def test_a_name_that_is_taken():
    model = adapted(noble())
    before = list(model.state_dict())
    with pytest.raises(ConfigError, match=r"has an adapter 'default' already; give the new one another name"):
        adapted(model)
    assert list(model.state_dict()) == before


def test_a_captured_model_is_refused_with_the_way_out():
    model = noble(capture="fx")
    with pytest.raises(ConfigError, match="capture the model by capture='modules'"):
        adapted(model)


def test_a_branch_of_another_kind_is_refused_as_ever():
    with pytest.raises(ConfigError, match="already carries branches"):
        noble_fx.transform(noble(), rank=2, select="all")


def test_an_error_leaves_the_model_as_it_was():
    model = noble()
    before, learning = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(ConfigError, match="torch's own"):
        adapted(model, adapter="gate")
    assert list(model.state_dict()) == before
    assert [p.requires_grad for p in model.parameters()] == learning


def test_what_an_attention_holds_as_parameters():
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}), torch.randn(4, 1, 8)
    noble_fx.transform(model, rank=3, select="all", seed=0)
    before = model["a"](x, x, x)[0]
    adapted(model)
    torch.testing.assert_close(model["a"](x, x, x)[0], before)
    y = fill(model)["a"](x, x, x)[0]
    assert not torch.allclose(y, before)
    torch.testing.assert_close(noble_fx.merge(model)["a"](x, x, x)[0], y, rtol=1e-4, atol=1e-5)


def test_another_form_of_w_is_no_part_of_it():
    with pytest.raises(ConfigError, match="which is no part of an adapter"):
        adapted(noble(), base="factorized", base_rank=2)


@pytest.mark.parametrize("name", list(PARALLEL))
def test_one_rank_of_many_computes_and_learns_the_same(name):
    alone = fill(adapted(transformed("modules")))
    with one_rank() as mesh:
        model = PARALLEL[name](copy.deepcopy(alone), mesh)
        y, expected = model(tokens()), alone(tokens())
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
        y.square().mean().backward()
        expected.square().mean().backward()
        found = {own_name(name, model): p.grad for name, p in model.named_parameters() if p.grad is not None}
        wanted = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
        assert found.keys() == wanted.keys()
        for key, gradient in found.items():
            torch.testing.assert_close(whole(gradient), wanted[key], rtol=1e-4, atol=1e-6)
        with pytest.raises(CaptureError, match="wrapped by"):
            noble_fx.use_adapters(model, None)


def _over_two_ranks(rank: int, folder: Path) -> None:
    alone = fill(adapted(transformed("modules")))
    mesh = init_device_mesh("cpu", (2,))
    plan = {"blocks.0.fc1": "colwise", "blocks.0.fc2": "rowwise"}
    model = copy.deepcopy(alone)
    parallelize_module(model, mesh, noble_fx.noble_plan(model, plan))
    y, expected = model(tokens()), alone(tokens())
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    y.square().mean().backward()
    expected.square().mean().backward()
    for (name, parameter), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(whole(parameter.grad), other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_plan_for_ranks(tmp_path):
    on_ranks(2, tmp_path, _over_two_ranks)
