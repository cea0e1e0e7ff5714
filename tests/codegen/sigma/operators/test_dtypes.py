"""Operators on every mixture of dtypes, in a kernel: each is what PyTorch computes, or is refused with a reason."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from noble_fx.codegen.code import Code
from noble_fx.codegen.generate import generate
from noble_fx.codegen.plan import make_plan
from noble_fx.codegen.sigma.operators.dtypes import cast, kind, number
from noble_fx.errors import KernelError
from tests.codegen.one_layer import branch_of, check, layer_of

RANK = 12

# What an operand may be: made of h, a parameter, a buffer, a tensor without axes, a number.
SOURCES: dict[str, Callable[["Mixed", Tensor], Tensor]] = {
    "float": lambda act, h: h,
    "parameter": lambda act, h: act.parameter,
    "long": lambda act, h: act.long_buffer,
    "int": lambda act, h: act.int_buffer,
    "bool": lambda act, h: act.bool_buffer,
    "scalar": lambda act, h: act.scalar,
    "truncated": lambda act, h: (h * 3).to(torch.int64),
    "compared": lambda act, h: h > 0.2,
    "2": lambda act, h: 2,
    "1.5": lambda act, h: 1.5,
    "True": lambda act, h: True,
}
TENSORS = list(SOURCES)[:-3]
FLOATS, INTEGERS, TRUTHS = ["float", "parameter"], ["long", "int", "scalar", "truncated"], ["bool", "compared"]


class Mixed(nn.Module):
    """The sum of one operator's results on several operands, each of its own weight."""

    def __init__(self, function, operands):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.function, self.operands = function, operands
        self.register_buffer("long_buffer", torch.randint(-5, 6, (RANK,), generator=generator))
        self.register_buffer("int_buffer", torch.randint(-5, 6, (RANK,), generator=generator, dtype=torch.int32))
        self.register_buffer("bool_buffer", torch.rand(RANK, generator=generator) > 0.5)
        self.register_buffer("scalar", torch.tensor(3))
        self.parameter = nn.Parameter(torch.randn(RANK, generator=generator))

    def forward(self, h):
        total = h.sin()
        for at, names in enumerate(self.operands):
            result = self.function(*(SOURCES[name](self, h) for name in names))
            total = total + result.to(h.dtype) * (0.1 + 0.02 * at)
        return total


def pairs(left: list[str], right: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for a in left for b in right]


def without(*names: str) -> list[tuple[str, str]]:
    """Every pair of operands but those of these names alone."""
    return [pair for pair in pairs(TENSORS, list(SOURCES)) if not set(pair) <= set(names)]


ANY, NUMBERS = pairs(TENSORS, list(SOURCES)), [*INTEGERS, "2"]
LOGICAL = [*pairs(TRUTHS, TRUTHS), *pairs(INTEGERS, [*INTEGERS, *TRUTHS]), *pairs(TRUTHS, INTEGERS)]
BINARY = {
    "add": (torch.add, ANY),
    "subtract": (torch.sub, pairs([*FLOATS, *INTEGERS], [*FLOATS, *INTEGERS, "2", "1.5"])),
    "subtract from": (torch.rsub, pairs([*FLOATS, *INTEGERS], [*FLOATS, *INTEGERS, "2", "1.5"])),
    "scaled add": (lambda a, b: torch.add(a, b, alpha=2), without(*TRUTHS, "True")),
    "multiply": (torch.mul, ANY),
    "divide": (torch.div, [(a, b) for a, b in ANY if b not in ("bool", "compared", "truncated", "long", "int")]),
    "maximum": (torch.maximum, pairs(TENSORS, TENSORS)),
    "equal": (torch.eq, ANY),
    "unequal": (torch.ne, ANY),
    "less": (torch.lt, without(*TRUTHS, "True")),
    "at least": (torch.ge, without(*TRUTHS, "True")),
    "and": (torch.logical_and, pairs(TENSORS, TENSORS)),
    "or": (torch.logical_or, pairs(TENSORS, TENSORS)),
    "exclusive or": (torch.logical_xor, pairs(TENSORS, TENSORS)),
    "bitwise and": (torch.bitwise_and, LOGICAL),
    "bitwise or": (torch.bitwise_or, LOGICAL),
    "bitwise exclusive or": (torch.bitwise_xor, LOGICAL),
    "where": (lambda a, b: torch.where(torch.as_tensor(a > 0 if a.dtype != torch.bool else a), a, b), ANY),
    "clamp": (lambda a, b: torch.clamp(a, -1, b), pairs([*FLOATS, *INTEGERS], ["2", "1.5"])),
    "joined": (
        lambda a, b: torch.cat([a[..., :5].expand(b[..., :5].shape), b[..., 5:]], -1),
        pairs(["long", "bool"], ["float", "compared", "truncated"]),
    ),
}
UNARY = {
    "negative": (torch.neg, [*FLOATS, *INTEGERS]),
    "absolute": (torch.abs, [*FLOATS, *INTEGERS]),
    "square": (torch.square, TENSORS),
    "sign": (torch.sign, [*FLOATS, *INTEGERS]),
    "floor": (torch.floor, [*FLOATS, *INTEGERS]),
    "sine": (torch.sin, TENSORS),
    "sigmoid": (torch.sigmoid, TENSORS),
    "exponential": (torch.exp, TENSORS),
    "relu": (torch.relu, [*FLOATS, *INTEGERS]),
    "not": (torch.logical_not, TENSORS),
    "bitwise not": (torch.bitwise_not, [*INTEGERS, *TRUTHS]),
    "a number": (torch.isnan, TENSORS),
    "cube": (lambda a: a**3, [*FLOATS, *INTEGERS]),
    "clamp of numbers": (lambda a: torch.clamp(a, -0.5, 1.5), [*FLOATS, *INTEGERS]),
    "sum": (lambda a: a.sum(-1, keepdim=True), [name for name in TENSORS if name != "scalar"]),
    "how many": (lambda a: (a > 0).sum(-1, keepdim=True), [name for name in TENSORS if name != "scalar"]),
    "full": (lambda a: torch.full_like(a, 2) + a, TENSORS),
    "to bool and back": (lambda a: a.bool().float(), TENSORS),
    "to int and back": (lambda a: a.int() + 1, TENSORS),
    "through bfloat16": (lambda a: a.bfloat16().float(), ["long", "bool", "compared"]),
    "numbers alone": (lambda a: torch.where(a > 0, 1, 2) * 3, TENSORS),
}
GROUPS = {name: (function, [(operand,) for operand in operands]) for name, (function, operands) in UNARY.items()}


FEW = {
    "and of truths": lambda act, h: (act.bool_buffer + (h > 0.2)).float() - ((h > 0) * act.bool_buffer).float(),
    "not of integers": lambda act, h: (~act.long_buffer).float() * 0.1 + torch.logical_not(act.int_buffer).float(),
    "logical": lambda act, h: torch.logical_and(act.long_buffer, act.int_buffer).float() + (h != 0).logical_or(h > 1),
    "bitwise": lambda act, h: ((act.long_buffer & act.int_buffer) | act.bool_buffer) * 0.1,
    "compared": lambda act, h: (act.long_buffer < 1.5).float() + (act.bool_buffer == (h > 0)) + (act.long_buffer >= h),
    "divided": lambda act, h: act.long_buffer / 3 + act.int_buffer / act.scalar,
    "chosen": lambda act, h: torch.where(h > 0, act.long_buffer, h) + torch.where(act.bool_buffer, 1, act.int_buffer),
    "promoted": lambda act, h: act.long_buffer * 1.5 + act.int_buffer * h + act.bool_buffer * act.parameter + True,
    "signs": lambda act, h: act.long_buffer.sign() * 0.2 + act.int_buffer.abs() * 0.1 + act.long_buffer.square() * 0.01,
    "clamped": lambda act, h: act.long_buffer.clamp(-1, 2) * 0.3 + act.int_buffer.clamp(-0.5, 1.5) + h.clamp(-1, 2),
    "summed": lambda act, h: (h > 0.2).sum(-1, keepdim=True) * 0.1 + act.bool_buffer.sum() * 0.1,
    "cast": lambda act, h: h.bool().float() + (h * 3).int() * 0.1 + act.bool_buffer.long() * 2 + act.bool_buffer.half(),
    "functions": lambda act, h: act.long_buffer.sin() + torch.sigmoid(act.bool_buffer) + act.int_buffer**2 * 0.02,
}


class Several(Mixed):
    """The sum of several expressions, each of a weight of its own."""

    def __init__(self, functions):
        super().__init__(None, [])
        self.functions = functions

    def forward(self, h):
        return h.sin() + sum(function(self, h) * (0.5 + 0.1 * at) for at, function in enumerate(self.functions))


def test_mixed_dtypes_in_a_kernel():
    check(branch_of(lambda rank: Several(list(FEW.values())), RANK), rows=35)


@pytest.mark.long
@pytest.mark.parametrize("name", [*BINARY, *GROUPS])
def test_every_mixture_in_a_kernel(name):
    function, operands = {**BINARY, **GROUPS}[name]
    for start in range(0, len(operands), 10):
        check(branch_of(lambda rank: Mixed(function, operands[start : start + 10]), RANK), rows=35)  # noqa: B023


@pytest.mark.parametrize(
    ("function", "operands", "reason"),
    [
        (torch.lt, ("bool", "compared"), "lt.Tensor"),
        (lambda a: a**9, ("long",), "pow.Tensor_Scalar"),
        (lambda a: a.amax(-1, keepdim=True), ("long",), "amax.default computes in torch.int64"),
        (lambda a: a.to(torch.uint8), ("float",), "computes in torch.uint8"),
        (lambda a: a.half().sin(), ("parameter",), "computes in torch.float16"),
        (lambda a: a.double().sin().float(), ("float",), "computes in torch.float64"),
        (lambda a, b: a // b, ("long", "2"), "not in the lowering table"),
    ],
)
def test_refused_with_the_reason(function, operands, reason):
    with pytest.raises(KernelError, match=reason):
        generate(make_plan(layer_of([branch_of(lambda rank: Mixed(function, [operands]), RANK)]), "interpreter"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_buffers_of_other_dtypes_are_refused(dtype):
    class Counted(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.register_buffer("counts", torch.arange(rank).to(dtype))

        def forward(self, h):
            return h * self.counts.float()

    with pytest.raises(KernelError, match=str(dtype)):
        generate(make_plan(layer_of([branch_of(Counted, RANK)]), "interpreter"))


def test_numbers_as_pytorch_takes_them():
    assert [number(value, torch.float32).text for value in (2, 0.5, True, 1e300, -1e300, 1e-60)] == [
        "2", "0.5", "1.0", 'float("inf")', 'float("-inf")', "0.0",
    ]  # fmt: skip
    assert [number(value, torch.int64).text for value in (2, 2.7, -2.7, True)] == ["2", "2", "-2", "1"]
    assert [number(value, torch.bool).text for value in (2, 0.0, True)] == ["True", "False", "True"]
    for value in (float("nan"), 1e30, "2"):
        with pytest.raises(KernelError):
            number(value, torch.int64)


def test_casts():
    x = Code.name("x")
    assert cast(x, torch.float32, torch.float32) is x
    assert str(cast(x, torch.float32, torch.bfloat16)) == "x.to(tl.bfloat16)"
    assert str(cast(x, torch.int64, torch.bool)) == "x != 0"
    assert cast(Code.number(2.5), torch.float32, torch.int64).text == "2"
    assert cast(Code.number(3), torch.int64, torch.float32).text == "3"
    with pytest.raises(KernelError, match="complex64"):
        cast(x, torch.float32, torch.complex64)
    with pytest.raises(KernelError, match="sin computes in"):
        kind(torch.uint8, "sin")
