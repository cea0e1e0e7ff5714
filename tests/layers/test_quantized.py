"""Layers whose weight another library quantized: torchao's own tensors, and a stand-in for bitsandbytes' layers."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)
from torchao.quantization.qat import QATConfig

import noble_fx
from noble_fx import CheckpointError, ConfigError
from noble_fx.layers.quantized import computing_dtype, foreign, is_frozen
from tests.models import loud

WEIGHT_ONLY = [Int8WeightOnlyConfig, IntxWeightOnlyConfig, Float8WeightOnlyConfig]
CONFIGS = [*WEIGHT_ONLY, Int8DynamicActivationInt8WeightConfig]


class Packed(nn.Parameter):
    """bitsandbytes' Params4bit: bytes of another shape, and what they were quantized from."""

    __module__ = "bitsandbytes.nn.modules"

    def __new__(cls, data: Tensor, state=None):
        made = torch.Tensor._make_subclass(cls, data, False)
        made.quant_state = state
        return made

    def __deepcopy__(self, memo):
        return type(self)(self.data.clone(), self.quant_state)


class State:
    dtype, scale = torch.bfloat16, 1 / 64


class Linear4bit(nn.Linear):
    """bitsandbytes' layer: a forward of its own, which the meta device could not run."""

    __module__ = "bitsandbytes.nn.modules"

    @classmethod
    def of(cls, layer: nn.Linear) -> nn.Linear:
        made = cls(layer.in_features, layer.out_features, bias=False)
        values = (layer.weight.detach() / State.scale).round().clamp(-127, 127).to(torch.int8)
        made.weight = Packed(values.view(torch.uint8).reshape(-1, 1), State())
        return made

    def forward(self, x: Tensor) -> Tensor:
        assert not x.is_meta
        return F.linear(x, (self.weight.data.view(torch.int8) * State.scale).view(self.out_features, -1).to(x.dtype))


def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).to(dtype)


def bitsandbytes() -> nn.Module:
    model = plain()
    model[0], model[2] = Linear4bit.of(model[0]), Linear4bit.of(model[2])
    return model


def quantized(config, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = plain(dtype)
    quantize_(model, config())
    return model


def noble(model: nn.Module, **settings) -> nn.Module:
    return loud(noble_fx.transform(model, rank=4, seed=0, **settings))


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's product with the values of its quantized weight, and its branch, in float64."""
    branch = copy.deepcopy(layer.noble).double()
    return F.linear(x.double(), layer.weight.dequantize().double(), layer.bias.double()) + branch(x.double())


@pytest.mark.parametrize("first", ["transform", "quantize_"])
@pytest.mark.parametrize("config", WEIGHT_ONLY)
def test_a_product_with_quantized_weights_and_the_branch_as_it_is(config, first):
    x = torch.randn(5, 32)
    if first == "transform":
        model = noble(plain())
        before = {name: value.clone() for name, value in model.state_dict().items() if ".noble." in name}
        quantize_(model, config())
        after = model.state_dict()
        assert all(type(after[name]) is Tensor and torch.equal(after[name], value) for name, value in before.items())
    else:
        model = noble(quantized(config))
    for layer, width in ((model[0], 32), (model[2], 64)):
        assert foreign(layer.weight).startswith("torchao's")
        rows = torch.randn(5, width)
        torch.testing.assert_close(layer(rows).double(), exact(layer, rows), rtol=1e-4, atol=1e-5)
    reason = f"its weight is {foreign(model[0].weight)}, whose product is its own"
    assert [(site.selected, site.unfused) for site in noble_fx.sites(model)] == [(True, reason)] * 2
    assert f"eager branch at 2 sites: {reason}"[:60] in str(noble_fx.explain(model))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
def test_both_orders_are_the_same_model(config, dtype):
    x = torch.randn(5, 32, dtype=dtype)
    after, before = noble(plain(dtype)), noble(quantized(config, dtype))
    quantize_(after, config())
    assert {p.dtype for name, p in before.named_parameters() if ".noble." in name} == {dtype}
    assert torch.equal(after(x), before(x))
    with noble_fx.disabled(before):
        assert torch.equal(before(x), quantized(config, dtype)(x))


def test_the_branch_learns_beside_a_base_that_stays():
    model, x = noble(quantized(Int8WeightOnlyConfig)), torch.randn(16, 32)
    assert noble_fx.sites(model)[0].reason == "no repeated blocks: all; beside torchao's Int8Tensor"
    noble_fx.set_trainable(model, "all")  # of which a quantized weight is none
    groups = noble_fx.param_groups(model, lr=1e-2)
    assert not any(foreign(parameter) for group in groups for parameter in group["params"])
    optimizer, weight = torch.optim.AdamW(groups), model[0].weight.dequantize()
    losses = []
    for _ in range(20):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert torch.equal(model[0].weight.dequantize(), weight)
    noble_fx.remove(model)
    assert type(model[0]) is nn.Linear


def test_what_would_change_or_store_the_weight_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="init_base=True would draw the weight of '0', which is quantized"):
        noble(quantized(Int8WeightOnlyConfig), init_base=True)
    (site, _) = noble_fx.sites(quantized(Int8WeightOnlyConfig), rank=4, init_base=True)
    assert not site.selected
    assert "init_base=False" in site.reason
    for model in (noble(quantized(Int8WeightOnlyConfig)), noble(bitsandbytes())):
        with pytest.raises(CheckpointError, match=r"0\.weight is (torchao's|bitsandbytes') .*state_dict with torch"):
            noble_fx.save(model, tmp_path / "folder")


def test_what_is_kept_of_branches_fits_the_model_that_is_quantized_anew(tmp_path):
    model, x = noble(quantized(Int8WeightOnlyConfig)), torch.randn(3, 32)
    torch.save({name: value for name, value in model.state_dict().items() if ".noble." in name}, tmp_path / "branches")
    again = noble_fx.transform(quantized(Int8WeightOnlyConfig), rank=4)
    assert not again.load_state_dict(torch.load(tmp_path / "branches"), strict=False).unexpected_keys
    assert torch.equal(again(x), model(x))


def test_a_compiled_model_is_the_model():
    model, x = noble(quantized(Int8WeightOnlyConfig)), torch.randn(3, 32)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize("first", ["transform", "convert"])
@pytest.mark.parametrize("gathered", [False, True])
def test_float8_training_keeps_its_product_and_the_branch(first, gathered):
    config = Float8LinearConfig(emulate=True, enable_fsdp_float8_all_gather=gathered)
    base, x = convert_to_float8_training(plain(), config=config), torch.randn(16, 32, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that branches move on
        model = noble(plain())
        if first == "transform":
            convert_to_float8_training(model, config=config, module_filter_fn=noble_fx.base_linears)
        else:
            model = noble(convert_to_float8_training(plain(), config=config))
    assert [type(layer).__name__ for layer in (model[0], model[2])] == ["NobleFloat8Linear"] * 2
    torch.testing.assert_close(model[0](x), base[0](x) + model[0].noble(x), rtol=0, atol=0)
    torch.autograd.backward(model(x).square().sum())
    assert all(p.grad is not None for p in model.parameters())
    if not gathered:
        model.zero_grad()
        found = torch.autograd.grad(model[0](x).square().sum(), [x, model[0].weight, model[0].noble.up])
        y = base[0](x) + model[0].noble(x)
        expected = torch.autograd.grad(y.square().sum(), [x, base[0].weight, model[0].noble.up])
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not any(is_frozen(p) for p in model.parameters())
    assert len(noble_fx.param_groups(model, lr=1e-3)[0]["params"]) == 2  # the base's matrices learn


def test_quantization_aware_training_keeps_the_branch_to_its_end():
    model, x = noble(plain()), torch.randn(3, 32)
    branch, base = model[0].noble, IntxWeightOnlyConfig()
    for step, kind in (("prepare", "NobleFakeQuantizedLinear"), ("convert", "NobleLinear")):
        with pytest.warns(UserWarning, match="their branches move on to it"):
            quantize_(model, QATConfig(base, step=step), filter_fn=noble_fx.base_linears)
        assert type(model[0]).__name__ == kind
        assert model[0].noble is branch
        model(x)
    torch.testing.assert_close(model[0](x).double(), exact(model[0], x), rtol=1e-4, atol=1e-5)
    assert {site.unfused for site in noble_fx.sites(model)} == {
        "its weight is torchao's IntxUnpackedToInt8Tensor, whose product is its own"
    }


def test_a_layer_of_bitsandbytes_gets_a_branch_of_the_dtype_that_was_quantized():
    model, x = bitsandbytes(), torch.randn(3, 32, dtype=torch.bfloat16)
    base = model[0](x)
    noble(model)
    assert computing_dtype(model, model[0], model[0].weight) == torch.bfloat16
    assert {p.dtype for p in model[0].noble.parameters()} == {torch.bfloat16}
    assert isinstance(model[0], Linear4bit)
    assert torch.equal(model[0](x), base + model[0].noble(x))
    x = x.float()  # another dtype than the branch's: it takes its own
    assert torch.equal(model[0](x), Linear4bit.forward(model[0], x) + model[0].noble(x.bfloat16()).float())
    assert all(site.selected and "bitsandbytes' Packed" in site.unfused for site in noble_fx.sites(model))


def test_without_anything_that_says_it_the_dtype_is_the_model_s():
    model = bitsandbytes()
    model[0].weight.quant_state = None
    assert computing_dtype(model, model[0], model[0].weight) == torch.get_default_dtype()
    model.norm = nn.LayerNorm(4, dtype=torch.float16)
    assert computing_dtype(model, model[0], model[0].weight) == torch.float16


class Odd(Tensor):
    """A tensor of torchao's that no product takes."""

    __module__ = "torchao.prototype"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            raise NotImplementedError("not today")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_tensor_that_no_product_takes_stays_out_with_its_reason():
    model = plain()
    model[0]._parameters["weight"] = torch.zeros(64, 32).as_subclass(Odd)
    site = noble_fx.sites(model, rank=4)[0]
    assert (site.selected, site.reason) == (False, "a Odd of torchao, and no plain tensor")


def test_the_factors_of_a_compressed_layer_may_be_quantized():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)), torch.randn(256, 64)
    small = noble_fx.compress(model, x, rank=16, select="all", progress=False)
    before = small(x)
    holder = nn.Linear(1, 1, bias=False)  # torchao looks for layers with a weight
    for layer in (small[0], small[2]):
        for name in ("down", "up"):
            holder.weight = getattr(layer.base, name)
            quantize_(holder, Int8WeightOnlyConfig())
            setattr(layer.base, name, nn.Parameter(holder.weight, requires_grad=False))
    after = small(x)
    assert 0 < (after - before).norm() / before.norm() < 0.02
    assert "W is factorized at 2 layers" in str(noble_fx.explain(small))
    noble_fx.transform(small, rank=4, select="all", seed=0)
    with noble_fx.disabled(small):
        assert torch.equal(small(x), after)
    assert [site.selected for site in noble_fx.sites(small)] == [True, True]
    assert small[0].noble.down.dtype is torch.float32
