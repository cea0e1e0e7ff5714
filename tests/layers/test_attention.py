"""nn.MultiheadAttention with branches on its projections, beside the class itself."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.attach.attach import named_branches
from tests.models import loud, silent

KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "other widths": {"kdim": 12, "vdim": 10, "batch_first": True},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}


def attention(kind: str, dtype: torch.dtype = torch.float64, **settings) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(16, 4, dtype=dtype, **KINDS[kind], **settings)


def inputs(kind: str, same: bool) -> tuple[Tensor, ...]:
    settings = KINDS[kind]
    widths = (16, settings.get("kdim", 16), settings.get("vdim", 16))
    torch.manual_seed(1)
    made = [torch.randn(3, 5 if i == 0 else 6, w, dtype=torch.float64) for i, w in enumerate(widths)]
    made = [m if settings.get("batch_first") else m.transpose(0, 1) for m in made]
    return (made[0],) * 3 if same and "kdim" not in settings else tuple(made)


def add(model: nn.Module) -> nn.Module:
    return loud(noble_fx.transform(model, rank=3, select="all", capture="modules", seed=0))


@pytest.mark.parametrize(("kind", "same"), itertools.product(KINDS, [True, False]))
def test_silent_branches_give_the_class_itself(kind, same):
    plain = attention(kind)
    made, given = silent(add(copy.deepcopy(plain))), inputs(kind, same)
    keys = given[1].shape[1 if plain.batch_first else 0]
    queries = given[0].shape[1 if plain.batch_first else 0]
    masks = [
        {},
        {"key_padding_mask": torch.arange(keys).expand(3, -1) >= 4},
        {"attn_mask": torch.randn(queries, keys, dtype=torch.float64)},
        {"attn_mask": torch.randn(12, queries, keys, dtype=torch.float64) > 1, "average_attn_weights": False},
        {"attn_mask": torch.ones(queries, keys).triu(1).bool(), "is_causal": True, "need_weights": False},
    ]
    for mask, weights in itertools.product(masks, [True, False]):
        arguments = {"need_weights": weights} | mask
        for one, other in zip(made(*given, **arguments), plain(*given, **arguments), strict=True):
            torch.testing.assert_close(one, other)


def test_unbatched():
    plain = attention("plain")
    made, x = silent(add(copy.deepcopy(plain))), torch.randn(5, 16, dtype=torch.float64)
    for one, other in zip(made(x, x, x), plain(x, x, x), strict=True):
        torch.testing.assert_close(one, other)


def test_the_branches_add_what_they_say():
    made = add(attention("batch first"))
    branches = named_branches(made)
    assert set(branches) == {"in_proj_weight", "out_proj"}
    (x, *_) = inputs("batch first", True)
    q, k, v = (
        (F.linear(x, made.in_proj_weight, made.in_proj_bias) + branches["in_proj_weight"](x))
        .unflatten(-1, (3, 4, 4))
        .permute(2, 0, 3, 1, 4)
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    expected = F.linear(mixed, made.out_proj.weight, made.out_proj.bias) + branches["out_proj"](mixed)
    torch.testing.assert_close(made(x, x, x)[0], expected)


def test_three_inputs_take_their_rows_of_one_branch():
    made, given = add(attention("batch first")), inputs("batch first", False)
    x = given[1]
    torch.testing.assert_close(made(x, x, x)[0], made(x, x.clone(), x.clone())[0])


@pytest.mark.parametrize("chosen", ["in_proj", "out_proj"])
def test_one_projection_alone(chosen):
    made = loud(noble_fx.transform(attention("plain"), rank=3, select=chosen, capture="modules"))
    given = inputs("plain", True)
    assert len(named_branches(made)) == 1
    made(*given)[0].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for b in named_branches(made).values() for p in b.parameters())


def test_the_class_and_its_keys_stay_and_remove_gives_both_back():
    plain = attention("plain", torch.float32)
    keys = list(plain.state_dict())
    made = add(plain)
    assert isinstance(made, nn.MultiheadAttention)
    assert [k for k in made.state_dict() if "noble." not in k] == keys
    noble_fx.remove(made)
    assert type(made) is nn.MultiheadAttention
    assert list(made.state_dict()) == keys


def test_disabled_is_the_class_bit_for_bit():
    plain = attention("batch first", torch.float32).eval()
    made, x = add(copy.deepcopy(plain)), torch.randn(2, 5, 16)
    with torch.no_grad(), noble_fx.disabled(made):
        assert torch.equal(made(x, x, x)[0], plain(x, x, x)[0])


@pytest.mark.parametrize("nested", [False, True])
def test_inside_nn_transformer_encoder_with_padding(nested):
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dtype=torch.float64)
    plain = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    made = silent(add(copy.deepcopy(plain)))
    x, padding = torch.randn(3, 5, 16, dtype=torch.float64), torch.arange(5).expand(3, -1) >= 4
    with torch.no_grad():
        torch.testing.assert_close(
            made(x, src_key_padding_mask=padding)[:, :4], plain(x, src_key_padding_mask=padding)[:, :4]
        )
    noble_fx.remove(made)
    assert made.use_nested_tensor == plain.use_nested_tensor


def test_a_subclass_is_listed_with_its_reason():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    sites = noble_fx.sites(nn.Sequential(Own(16, 2), nn.Linear(16, 16)), rank=2)
    (found,) = (s for s in sites if s.fqn == "0.in_proj_weight")
    assert "subclass of nn.MultiheadAttention with a forward of its own" in found.reason


def test_fx_calls_the_attention_as_a_whole():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, x, x)[0]

    torch.manual_seed(0)
    plain, x = Around(), torch.randn(2, 5, 16)
    twin = loud(noble_fx.transform(copy.deepcopy(plain), rank=3, capture="modules", seed=0))
    made = loud(noble_fx.transform(plain, rank=3, capture="fx", seed=0))
    torch.testing.assert_close(made(x), twin(x))
    assert not torch.equal(made(x), silent(twin)(x))
