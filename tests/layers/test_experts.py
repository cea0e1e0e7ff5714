"""Experts of transformers' classes with a branch for each, beside the class itself and a loop in float64."""

from __future__ import annotations

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

pytest.importorskip("transformers")

from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

import noble_fx
from noble_fx import CaptureError, ConfigError
from noble_fx.attach.attach import named_branches
from noble_fx.layers.experts import is_known
from noble_fx.layers.registry import bias_of, describe, described_projection, obstacle, projections
from tests.branches.test_kinds import Softsign
from tests.models import loud, silent
from tests.samples import long

E, T, TOP, H, INNER = 5, 11, 2, 16, 24
FORMS = ("eager", "grouped_mm", "batched_mm")
CLASSES = {
    "gated": MixtralExperts,
    "transposed, with biases and a gate of its own": GptOssExperts,
    "not gated": NemotronHExperts,
    "a norm behind": MuseSparkExperts,
}


def config(form: str = "eager") -> SimpleNamespace:
    sizes = {"num_local_experts": E, "n_routed_experts": E, "hidden_size": H, "moe_hidden_size": H}
    sizes |= {"intermediate_size": INNER, "moe_intermediate_size": INNER, "moe_latent_size": None}
    return SimpleNamespace(
        **sizes, hidden_act="silu", mlp_hidden_act="relu2", swiglu_alpha=1.7, swiglu_limit=1.5, post_norm_eps=1e-6,
        _experts_implementation=form,
    )  # fmt: skip


def experts(kind: str = "gated", form: str = "eager", dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    module = CLASSES[kind](config(form))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.to(dtype)


def inputs(dtype: torch.dtype = torch.float64, tokens: int = T) -> tuple[Tensor, Tensor, Tensor]:
    """The last expert gets no token."""
    torch.manual_seed(1)
    index = torch.stack([torch.randperm(E - 1)[:TOP] for _ in range(T)])[:tokens]
    hidden, weights = torch.randn(T, H, dtype=torch.float64), torch.rand(T, TOP, dtype=torch.float64)
    return hidden[:tokens].to(dtype), index, weights[:tokens].to(dtype)


def add(module: nn.Module, **settings) -> nn.Module:
    return loud(noble_fx.transform(module, rank=3, select="all", seed=0, **settings))


def looped(module: nn.Module, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The definition, token by token; products, branches and the class's own gate."""

    def project(row: Tensor, name: str, e: int) -> Tensor:
        weight, bias = getattr(module, name)[e], getattr(module, f"{name}_bias", None)
        weight = weight.t() if module.is_transposed else weight
        return F.linear(row, weight, None if bias is None else bias[e]) + module.noble[name][e](row)

    rows = []
    for token, chosen, scale in zip(x, index.tolist(), weights, strict=True):
        total = torch.zeros_like(token)
        for e, weight in zip(chosen, scale, strict=True):
            h = project(token, "gate_up_proj" if module.has_gate else "up_proj", e)
            y = project(module._apply_gate(h) if module.has_gate else module.act_fn(h), "down_proj", e)
            total = total + weight * (module.post_expert_norm(y) if module.has_post_expert_norm else y)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("form", FORMS)
def test_silent_branches_give_the_class_itself(kind, form):
    plain = experts(kind)
    made, given = silent(add(copy.deepcopy(plain))), inputs()
    made.config._experts_implementation = form
    rounded = 1e-6 if kind == "a norm behind" else 1e-12  # which is in float32
    torch.testing.assert_close(made(*given), plain(*given), rtol=rounded, atol=rounded * 10)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_gradients_and_all_are_those_of_the_loop(kind, form):
    made, (x, index, weights) = add(experts(kind, form)), inputs()
    x.requires_grad_()
    weights.requires_grad_()
    tensors = [x, weights, *made.parameters()]
    y, expected = made(x, index, weights), looped(made, x, index, weights)
    rounded = {"rtol": 1e-6, "atol": 1e-5} if kind == "a norm behind" else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(y, expected, **rounded)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, tensors, dy)
    wanted = torch.autograd.grad(expected, tensors, dy, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, wanted, **rounded)


def test_gradients_reach_the_experts_that_have_tokens_and_are_zero_for_the_others():
    made = add(experts())
    made(*inputs()).square().sum().backward()
    for name, branch in named_branches(made).items():
        reached = [p.grad.abs().sum() > 0 for p in branch.parameters()]
        assert not any(reached) if name.endswith(f".{E - 1}") else all(reached)


def test_second_derivatives():
    made, (x, index, weights) = add(experts(form="grouped_mm")), inputs(tokens=2)
    assert torch.autograd.gradgradcheck(lambda x: made(x, index, weights).square(), x.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["gated", "transposed, with biases and a gate of its own"])
def test_no_tokens(form, kind):
    made, plain = add(experts(kind, form)), experts(kind)
    assert torch.equal(made(*inputs(tokens=0)), plain(*inputs(tokens=0)))


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_and_under_autocast(form):
    exact = add(experts())(*inputs())
    made = add(experts(form=form))
    low = copy.deepcopy(made).bfloat16()(*inputs(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = copy.deepcopy(made).float()(*inputs(torch.float32))
        plain = experts(form=form, dtype=torch.float32)(*inputs(torch.float32))
    assert (low.dtype, mixed.dtype) == (torch.bfloat16, plain.dtype)
    for y in (low, mixed):
        assert float((y.double() - exact).detach().norm() / exact.detach().norm()) < 0.02


@pytest.mark.parametrize("form", FORMS)
def test_disabled_runs_the_class_bit_for_bit_and_remove_gives_it_back(form):
    plain, given = experts(form=form, dtype=torch.float32), inputs(torch.float32)
    made, keys = add(copy.deepcopy(plain)), list(plain.state_dict())
    assert isinstance(made, MixtralExperts)
    assert [key for key in made.state_dict() if "noble." not in key] == keys
    with noble_fx.disabled(made):
        assert torch.equal(made(*given), plain(*given))
    assert not torch.equal(made(*given), plain(*given))
    assert type(noble_fx.remove(made)) is MixtralExperts
    assert list(made.state_dict()) == keys
    assert torch.equal(made(*given), plain(*given))


def test_copies_and_files():
    made, given = add(experts()), inputs()
    y = made(*given)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(copied(*given), y)
    stored = io.BytesIO()
    torch.save(made.state_dict(), stored)
    stored.seek(0)
    other = noble_fx.transform(experts(), rank=3, select="all", seed=5)
    other.load_state_dict(torch.load(stored))
    assert torch.equal(other(*given), y)


def test_folded():
    made, given = add(experts()), inputs()
    folded = noble_fx.fold(made)
    assert all(branch.folded for branch in named_branches(folded).values())
    torch.testing.assert_close(folded(*given), made(*given), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("form", "backend"), [("grouped_mm", "aot_eager"), long("eager", "inductor"), long("batched_mm", "inductor")]
)
def test_compiled_in_one_graph(form, backend):
    made, (x, index, weights) = add(experts(form=form, dtype=torch.float32)), inputs(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(made, backend=backend, fullgraph=True)
    found, expected = (torch.autograd.grad(m(x, index, weights).sum(), made.parameters()) for m in (compiled, made))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled(x[:4], index[:4], weights[:4]), made(x[:4], index[:4], weights[:4]))


def test_a_kind_of_ones_own_is_compiled_around_and_costs_its_rows_alone():
    made, given = (
        noble_fx.transform(experts(dtype=torch.float32), rank=3, select="all", branch=Softsign),
        inputs(torch.float32),
    )
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(made, backend="aot_eager")(*given), made(*given))


def test_checkpointed_and_called_by_name():
    made, (x, index, weights) = add(experts("transposed, with biases and a gate of its own")), inputs()
    kept = checkpoint(made, x, index, routing_weights=weights, use_reentrant=False)
    again = torch.autograd.grad(kept.square().sum(), made.parameters())
    expected = torch.autograd.grad(
        made(x, router_indices=index, routing_weights=weights).square().sum(), made.parameters()
    )
    torch.testing.assert_close(again, expected)


def test_one_projection_alone():
    made = add(experts(), exclude="down_proj")
    assert {name.rpartition(".")[0] for name in named_branches(made)} == {"gate_up_proj"}
    assert "down_proj" not in made.noble
    noble = copy.deepcopy(made).noble
    made.noble["down_proj"] = nn.ModuleList([nothing() for _ in range(E)])
    expected = looped(made, *inputs())
    made.noble = noble
    torch.testing.assert_close(made(*inputs()), expected, rtol=1e-10, atol=1e-10)


def nothing() -> nn.Module:
    class Zero(nn.Module):
        def forward(self, row: Tensor) -> Tensor:
            return torch.zeros(H, dtype=row.dtype)

    return Zero()


def test_the_export_capture_draws_and_computes_the_same_under_the_same_names():
    """So that each takes the other's files."""
    made = add(experts(form="batched_mm"))
    other = experts(form="grouped_mm", dtype=torch.float32)
    graphs = noble_fx.transform(
        other, rank=3, select="all", seed=0, capture="export", example_inputs=inputs(torch.float32)
    )
    fresh = noble_fx.transform(experts(dtype=torch.float32), rank=3, select="all", seed=0)
    for (name, one), (other_name, two) in zip(fresh.state_dict().items(), graphs.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, two)
    graphs.load_state_dict(made.float().state_dict())
    torch.testing.assert_close(graphs(*inputs(torch.float32)), made(*inputs(torch.float32)), rtol=1e-5, atol=1e-5)


# --- what is listed -------------------------------------------------------------------------------------------------


def test_sites_say_how_the_stack_lies():
    sites = {site.fqn: site for site in noble_fx.sites(experts(), rank=3, select="all")}
    up, down = sites["gate_up_proj"], sites["down_proj"]
    assert (up.kind, up.layout, up.experts, up.in_features, up.out_features) == (
        "MixtralExperts",
        "[E, N, K]",
        E,
        H,
        2 * INNER,
    )
    assert (down.in_features, down.out_features) == (INNER, H)
    other = experts("transposed, with biases and a gate of its own")
    sites = {site.fqn: site for site in noble_fx.sites(add(other))}
    assert (sites["gate_up_proj"].layout, sites["gate_up_proj"].out_features) == ("[E, K, N]", 2 * INNER)
    assert sites["gate_up_proj"].params == sum(
        p.numel() for name, b in named_branches(other).items() if name.startswith("gate_up") for p in b.parameters()
    )
    assert "gate_up_proj" in str(noble_fx.explain(other))
    assert bias_of(other, "down_proj") is other.down_proj_bias
    assert describe(other) is None
    assert described_projection(other) == ("GptOssExperts", "[E, K, N]")
    assert "down_proj" in projections(other)
    assert noble_fx.param_groups(other, lr=1e-3)


def test_drawn_by_name_whatever_else_is_there():
    one, other = (noble_fx.transform(nn.ModuleList([experts()]), rank=3, select=s, seed=0) for s in ("all", ".*down.*"))
    for name, branch in named_branches(other).items():
        torch.testing.assert_close(branch.down, named_branches(one)[name].down)
    assert not torch.equal(named_branches(one)["0.down_proj.0"].down, named_branches(one)["0.down_proj.1"].down)


def test_a_base_that_is_drawn_again_takes_the_biases_along():
    made = noble_fx.transform(
        experts("transposed, with biases and a gate of its own"), rank=3, select="all", init_base=True, seed=0
    )
    assert not made.gate_up_proj_bias.any()
    assert not made.down_proj_bias.any()
    assert (
        0.5 < float(made.down_proj.detach().std() * INNER**0.5 / made.noble["down_proj"][0].config.recipe.base_gain) < 2
    )


def test_what_computes_them_elsewhere_is_refused():
    for change, reason in (
        (lambda m: setattr(m.config, "_experts_implementation", "sonicmoe"), "'sonicmoe' computes them elsewhere"),
        (lambda m: setattr(m, "_is_expert_parallel", True), "spread over processes"),
    ):
        module = experts()
        change(module)
        assert reason in str(obstacle(module))
        with pytest.raises(ConfigError, match=reason):
            noble_fx.transform(module, rank=3, select=["down_proj"])
        made = add(experts())
        change(made)
        with pytest.raises(CaptureError, match=reason):
            made(*inputs())


def test_a_forward_over_the_librarys_is_none_that_is_known():
    class Own(MixtralExperts):
        def forward(self, *args):
            return super().forward(*args)

    assert is_known(experts())
    assert not is_known(Own(config()))
    assert "bare parameter" in noble_fx.sites(Own(config()), rank=3, select="all")[0].reason
    other = MixtralExperts(config())
    other.forward = other.forward
    assert "replaced on the instance" in str(obstacle(other))


def test_experts_that_compute_something_else_are_left_out():
    class Doubled(MixtralExperts):
        def _apply_gate(self, h):
            return 2 * super()._apply_gate(h)

    refusal = obstacle(Doubled(config()))
    assert "Doubled computes something else" in str(refusal)


# --- classes with a forward of their own ----------------------------------------------------------------------------


def test_dense_experts_of_llama_4():
    torch.manual_seed(0)
    plain = Llama4TextExperts(config())
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.4)
    plain = plain.double()
    x = torch.randn(E * 3, H, dtype=torch.float64)
    made = add(copy.deepcopy(plain))
    rows = []
    for e, part in enumerate(x.view(E, 3, H)):
        gate, up = (part @ made.gate_up_proj[e] + made.noble["gate_up_proj"][e](part)).chunk(2, dim=-1)
        h = up * F.silu(gate)
        rows.append(h @ made.down_proj[e] + made.noble["down_proj"][e](h))
    torch.testing.assert_close(made(x), torch.cat(rows), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(silent(made)(x), plain(x))
    with noble_fx.disabled(made):
        assert torch.equal(made(x), plain(x))


def test_parallel_experts_of_jetmoe():
    torch.manual_seed(0)
    plain = JetMoeParallelExperts(E, H, INNER).double()
    nn.init.normal_(plain.weight)
    x, sizes = torch.randn(7, H, dtype=torch.float64), [2, 0, 4, 0, 1]
    made = add(copy.deepcopy(plain))
    parts = zip(x.split(sizes), made.weight, made.noble["weight"], strict=True)
    expected = torch.cat([F.linear(part, weight) + branch(part) for part, weight, branch in parts])
    torch.testing.assert_close(made(x, sizes), expected)
    with noble_fx.disabled(made):
        assert torch.equal(made(x, sizes), plain(x, sizes))
    assert next(iter(named_branches(made))) == "weight.0"
