"""The verb: a copy with thin weights, as small and as exact as it says, and every refusal with its remedy."""

import copy
import os
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.compressing import gather, timing
from noble_fx.compressing.factors import losses
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.methods.table import METHODS
from noble_fx.compressing.problem import best_outputs
from tests.compressing.models import batches, exact, inputs_of, with_branches
from tests.models import tiny
from tests.test_whole_or_not import shape_of, values_of

GIVEN = batches(8)


def relative(model: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        y = torch.cat([model(batch) for batch in GIVEN])
        return float((y - torch.cat([other(batch) for batch in GIVEN])).norm() / y.norm())


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [{"keep": 0.6}, {"rank": 6}, {"error": 0.65}], ids=str)
def test_a_copy_that_is_smaller(method, budget):
    model = exact(32)
    before, shape = values_of(model), shape_of(model)
    done = noble_fx.compress(model, GIVEN, method=method, **budget)
    assert isinstance(done, type(model))
    assert sum(p.numel() for p in done.parameters()) < sum(p.numel() for p in model.parameters())
    assert shape_of(model) == shape
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert relative(model, done) < 0.5
    changed = [site for site in noble_fx.sites(done) if site.base]
    assert {site.base for site in changed} == {"factorized"}
    assert {done.get_submodule(site.fqn).base.method for site in changed} == {method}


@pytest.mark.parametrize("method", ["activations", "svd"])
def test_the_better_the_larger(method):
    model = exact(32)
    errors = [
        relative(model, noble_fx.compress(model, GIVEN, keep=keep, method=method, round_to=2))
        for keep in (0.9, 0.6, 0.3)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.2


@pytest.mark.parametrize("method", ["svd", "welore", "diagonal"])
def test_no_method_has_less_error_at_any_layer(method):
    model = exact(32)
    for rank in (4, 8, 12):
        best, other = (noble_fx.compress(model, GIVEN, rank=rank, method=each) for each in ("activations", method))
        for site, with_other in zip(noble_fx.sites(best), noble_fx.sites(other), strict=True):
            assert site.base_error is None or site.base_error <= with_other.base_error * (1 + 1e-6)


def test_each_layer_is_as_far_off_as_it_says():
    model = exact(32)
    done = noble_fx.compress(model, GIVEN, rank=8)
    for site in noble_fx.sites(done):
        if site.base:
            x, layer, new = (
                inputs_of(model, site.fqn, GIVEN),
                model.get_submodule(site.fqn),
                done.get_submodule(site.fqn),
            )
            y = layer(x).detach()
            error = (y - new(x).detach()).norm() / (y - y.mean(0)).norm()
            assert site.base_error == pytest.approx(float(error), rel=1e-6)


def test_a_branch_is_fitted_again():
    """Beside a branch the error is that of both together, and less than with the branch as it was."""
    model = with_branches(rank=6, model=exact(32))
    done = noble_fx.compress(model, GIVEN, rank=8)
    for name in ("blocks.0.fc1", "blocks.1.q_proj"):
        x, layer, new = inputs_of(model, name, GIVEN), model.get_submodule(name), done.get_submodule(name)
        y = layer(x).detach()
        error = float((y - new(x).detach()).norm() / (y - y.mean(0)).norm())
        assert new.base.error == pytest.approx(error, rel=1e-6)
        kept = noble_fx.compress(noble_fx.remove(copy.deepcopy(model)), GIVEN, rank=8).get_submodule(name)
        with_old_branch = kept(x).detach() + layer.noble(x).detach()
        assert error < float((y - with_old_branch).norm() / (y - y.mean(0)).norm())
    assert [site.rank for site in noble_fx.sites(done)] == [site.rank for site in noble_fx.sites(model)]


def test_a_branch_that_does_not_say_what_its_last_matrix_reads_stays():
    class Plain(noble_fx.NobleBranch):
        kind = "plain"

        def forward(self, x, rows=None):
            return super().forward(x, rows)

    model = noble_fx.transform(exact(32), rank=4, branch=Plain, select="fc1", seed=0)
    done = noble_fx.compress(model, GIVEN, rank=8, select="fc1")
    assert torch.equal(done.blocks[0].fc1.noble.up, model.blocks[0].fc1.noble.up)
    assert done.blocks[0].fc1.base.rank == 8


def test_a_method_of_ones_own():
    class Halved(Method):
        """The optimum at half of its size: worse, and it says so."""

        def factorise(self, problem):
            best = best_outputs(problem)
            left = best.left / 2
            return replace(best, left=left, losses=losses(problem.weight, left, best.right, problem.covariance))

    model = exact(32)
    done = noble_fx.compress(model, GIVEN, rank=8, method=Halved())
    assert done.blocks[0].fc1.base.method == "Halved"
    assert done.blocks[0].fc1.base.error > noble_fx.compress(model, GIVEN, rank=8).blocks[0].fc1.base.error


def test_without_calibration():
    model = exact(32)
    for method in ("svd", "welore"):
        done = noble_fx.compress(model, method=method, keep=0.6)
        assert relative(model, done) < 0.5
    assert torch.equal(done.blocks[0].fc1.bias, model.blocks[0].fc1.bias)


def test_bias():
    model = exact(32)
    given, none = (noble_fx.compress(model, GIVEN, rank=8, bias=bias) for bias in (True, False))
    assert given.blocks[0].k_proj.bias.shape == (32,)
    assert none.blocks[0].k_proj.bias is None
    assert torch.equal(none.blocks[0].fc1.bias, model.blocks[0].fc1.bias)
    assert relative(model, given) < relative(model, none)


def test_transposed_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=32, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    given = [{"input_ids": batch} for batch in GIVEN]
    done = noble_fx.compress(model, given, keep=0.6)
    assert {site.fqn.rpartition(".")[2] for site in noble_fx.sites(done) if site.base} <= {"c_attn", "c_proj", "c_fc"}
    y, z = model(GIVEN[0]).logits, done(GIVEN[0]).logits
    assert 0 < (y - z).norm() / y.norm() < 0.5


def test_it_learns_saves_and_exports(tmp_path):
    model = tiny(width=32)
    done = noble_fx.compress(model, GIVEN, keep=0.6)
    assert torch.equal(pickle.loads(pickle.dumps(done))(GIVEN[0]), done(GIVEN[0]))
    noble_fx.save(done, tmp_path / "saved")
    assert torch.equal(noble_fx.load(tiny(width=32), tmp_path / "saved")(GIVEN[0]), done(GIVEN[0]))
    done(GIVEN[0]).sum().backward()
    assert all(p.grad is not None for p in done.blocks.parameters())
    thin = {site.fqn for site in noble_fx.sites(done) if site.base}
    assert thin
    both = noble_fx.sites(noble_fx.transform(done, rank=2))
    assert {site.fqn for site in both if site.selected and site.base} == thin


def test_an_encoder_does_not_pass_its_factors_by():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1).double().eval()
    done = noble_fx.compress(encoder, torch.randn(10, 9, 32, dtype=torch.float64), rank=8, select="linear")
    called = []
    done.layers[0].linear1.base.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        done(torch.randn(2, 5, 32, dtype=torch.float64))
    assert called


def test_random_numbers_and_modes():
    model = exact(32).train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    done = noble_fx.compress(model, GIVEN, rank=8)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert done.training
    assert done.blocks[0].fc1.base.training


def test_it_is_the_same_each_time():
    first, second = (noble_fx.compress(exact(32), GIVEN, keep=0.6).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_how_the_rows_are_cut_into_batches_does_not_matter():
    model = exact(32)
    one, many = noble_fx.compress(model, torch.cat(GIVEN), rank=8), noble_fx.compress(model, GIVEN, rank=8)
    torch.testing.assert_close(one(GIVEN[0]), many(GIVEN[0]))


@pytest.mark.parametrize("settings", [{}, {"sequential": True}, {"dry_run": True}], ids=str)
@pytest.mark.parametrize("budget", [{"keep": 0.6}, {"rank": 8}], ids=str)
def test_what_would_not_be_faster_stays_dense(settings, budget, monkeypatch):
    monkeypatch.setattr(timing, "_ratio", lambda outputs, inputs, *others: 1.5 if outputs == inputs else 0.5)
    done = noble_fx.compress(exact(32), GIVEN, faster_at=4, **budget, **settings)
    entries = done.sites if "dry_run" in settings else noble_fx.sites(done)
    assert {site.fqn.rpartition(".")[2] for site in entries if site.base} <= {"fc1", "fc2"}
    if "dry_run" in settings and "rank" in budget:
        slow = [site.reason for site in done.sites if site.fqn.endswith("proj")]
        assert len(slow) == 8
        assert all("rank 8 take 1.50 times as long at 4 rows" in reason for reason in slow)


def test_a_dry_run_changes_nothing():
    model = exact(32).train()
    before, shape = values_of(model), shape_of(model)
    plan = noble_fx.compress(model, GIVEN, keep=0.6, dry_run=True)
    assert isinstance(plan, noble_fx.CompressionPlan)
    assert shape_of(model) == shape
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- what is refused -------------------------------------------------------------------------------------------------


class OtherInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, hidden, mask):
        return self.a(hidden)


@pytest.mark.parametrize(
    ("given", "settings", "match"),
    [
        (None, {}, "method='activations' needs calibration rows: pass inputs of the model"),
        (None, {"method": "svd", "sequential": True}, "sequential=… calibrates each layer anew"),
        ([], {}, "calibration holds no batch"),
        ("rows", {}, "calibration='rows' must be a tensor"),
        (GIVEN[0][:1], {}, "too few calibration rows: .* has seen 12 rows and needs at least 33"),
        (GIVEN, {"rank": None}, "exactly one of"),
        (GIVEN, {"keep": 0.5}, "exactly one of"),
        (GIVEN, {"rank": 30}, "nothing would be compressed; .* rank 30 saves nothing: .* up to rank 15"),
        (GIVEN, {"rank": None, "error": 1e-6}, "nothing would be compressed; .* no rank that saves anything reaches"),
        (GIVEN, {"rank": None, "keep": 0.05}, "keep=0.05 of the .* least ranks need .* keep at least"),
        (GIVEN, {"method": "sdv"}, "method='sdv' is unknown.*nearest: 'svd'"),
        (GIVEN, {"sequential": "blocks"}, "sequential='blocks' must be"),
        (GIVEN, {"bias": 1}, "bias=1 must be True or False"),
        (GIVEN, {"dry_run": "no"}, "dry_run='no' must be True or False"),
        (GIVEN, {"progress": None}, "progress=None must be True or False"),
        (GIVEN, {"faster_at": 0}, "faster_at=0 must be None or a number of rows"),
        (GIVEN, {"faster_at": True}, "faster_at=True must be"),
        (GIVEN, {"select": "nowhere"}, "leaves no layer to compress"),
        (GIVEN, {"select": 3}, "select=3 must be"),
        ([{"tokens": GIVEN[0]}], {}, "cannot run on calibration batch 0: missing a required argument: 'idx'"),
    ],
)
def test_what_is_refused(given, settings, match):
    model = exact(32)
    shape = shape_of(model)
    with pytest.raises(ConfigError, match=match):
        noble_fx.compress(model, given, **{"rank": 8, **settings})
    assert shape_of(model) == shape


def test_inputs_that_the_model_does_not_take():
    with pytest.raises(ConfigError, match=r"missing a required argument: 'mask' of OtherInputs\.forward"):
        noble_fx.compress(OtherInputs(), torch.randn(20, 8), rank=2)


def test_inputs_that_are_not_finite():
    model = exact(32)
    with torch.no_grad():
        model.blocks[0].fc1.weight[3] = float("nan")
    with pytest.raises(ConfigError, match=r"the input of 'blocks.0.fc2' is not finite in calibration batch 0"):
        noble_fx.compress(model, GIVEN, rank=8)


def test_weights_that_are_quantized_or_tied():
    model = exact(32)
    model.blocks[1].fc1.weight = model.blocks[0].fc1.weight
    done = noble_fx.compress(model, GIVEN, rank=8, select="all")
    said = {site.fqn: site.reason for site in noble_fx.compress(model, GIVEN, rank=8, dry_run=True).sites}
    assert "tied to another module's" in said["blocks.0.fc1"]
    assert done.blocks[0].fc1.weight is done.blocks[1].fc1.weight
    with pytest.raises(ConfigError, match=r"select names 'blocks.0.fc1', which cannot be compressed: .*tied"):
        noble_fx.compress(model, GIVEN, rank=8, select=["blocks.0.fc1"])


def test_twice():
    done = noble_fx.compress(exact(32), GIVEN, rank=8)
    with pytest.raises(ConfigError, match="has another form already"):
        noble_fx.compress(done, GIVEN, rank=4)


def test_a_model_that_runs_a_graph_or_is_compiled_or_off():
    captured = noble_fx.transform(exact(32), rank=4, capture="fx")
    with pytest.raises(noble_fx.CaptureError, match="compress the model before it is captured"):
        noble_fx.compress(captured, GIVEN, rank=8)
    with pytest.raises(noble_fx.CaptureError, match="already compiled"):
        noble_fx.compress(torch.compile(exact(32)), GIVEN, rank=8)
    model = with_branches(model=exact(32))
    with noble_fx.disabled(model), pytest.raises(ConfigError, match=r"leave noble_fx\.disabled"):
        noble_fx.compress(model, GIVEN, rank=8)


def test_a_model_that_cannot_be_copied():
    model = exact(32)
    model.lock = open(os.devnull)  # noqa: SIM115
    with pytest.raises(ConfigError, match="the model cannot be copied, and compress gives a copy: TypeError"):
        noble_fx.compress(model, GIVEN, rank=8)
    model.lock.close()


@pytest.mark.parametrize("settings", [{}, {"dry_run": True}, {"method": "saes"}], ids=str)
def test_stopped_half_way(settings, monkeypatch):
    model = exact(32).train()
    before, shape = values_of(model), shape_of(model)

    def interrupted():
        yield GIVEN[0]
        yield GIVEN[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noble_fx.compress(model, interrupted(), rank=8, **settings)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(gather, "_partners", stop)
    with pytest.raises(KeyboardInterrupt):
        noble_fx.compress(model, GIVEN, rank=8, **settings)
    assert shape_of(model) == shape
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
