"""The table of pointwise operators: the text of every row is evaluated and compared with the operator itself."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from noble_fx.codegen.code import Code
from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.codegen.sigma.operators import pointwise as table
from noble_fx.codegen.sigma.operators.dtypes import Kind
from noble_fx.codegen.sigma.operators.pointwise import arguments, aten, is_pointwise, pointwise
from noble_fx.errors import KernelError
from tests.codegen.one_layer import Pointwise, branch_of, check
from tests.samples import long, sampled

LAYER = Layer(64, (64,), 16, "identity-0123", torch.float32, torch.float32)
PLANS = {backend: make_plan(LAYER, backend) for backend in ("cuda", "interpreter")}

# What the texts call, in PyTorch's words.
TL = SimpleNamespace(
    abs=torch.abs,
    floor=torch.floor,
    ceil=torch.ceil,
    exp=torch.exp,
    exp2=torch.exp2,
    log=torch.log,
    log2=torch.log2,
    sqrt_rn=torch.sqrt,
    rsqrt=torch.rsqrt,
    erf=torch.erf,
    sigmoid=torch.sigmoid,
    where=torch.where,
    maximum=lambda a, b, propagate_nan=None: torch.maximum(torch.as_tensor(a), torch.as_tensor(b)),
    minimum=lambda a, b, propagate_nan=None: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
    PropagateNan=SimpleNamespace(ALL=True),
    int64=torch.int64,
)
LIBDEVICE = SimpleNamespace(
    **{name: getattr(torch, name) for name in ("tanh", "expm1", "log1p", "erfc", "sinh", "cosh", "tan", "trunc")}
)

X = torch.tensor([-2.5, -1.0, -0.25, 0.0, 0.5, 1.0, 3.75, math.nan], dtype=torch.float64)
Y = torch.tensor([1.5, -1.0, 0.75, 0.5, 2.0, 1.0, -3.0, 1.0], dtype=torch.float64)
TRUE = torch.tensor([True, False, True, True, False, False, True, False])
# Operands of each kind, two of them: what a row computes with.
OPERANDS = {
    Kind.FLOAT: (X, Y),
    Kind.INTEGER: (torch.tensor([-3, -1, 0, 2, 5, 1, 7, -8]), torch.tensor([1, -1, 3, 2, 0, 4, -7, -8])),
    Kind.BOOL: (TRUE, torch.tensor([True, True, False, True, False, True, False, False])),
}
DTYPES = {Kind.FLOAT: torch.float32, Kind.INTEGER: torch.int64, Kind.BOOL: torch.bool}


def evaluated(target, operands, backend="cuda", kind=Kind.FLOAT):
    names = dict(zip("xyz", operands, strict=False))
    codes = [
        Code.name(name) if isinstance(operand, torch.Tensor) else None if operand is None else Code.number(operand)
        for name, operand in names.items()
    ]
    code = pointwise(PLANS[backend], target, codes, DTYPES[kind])
    assert code is not None, f"{target} is not in the table"
    waves = {f"{kind}_{wave}": getattr(torch, wave) for kind in ("fast", "exact") for wave in ("cos", "sin")}
    return eval(code.text, {"tl": TL, "libdevice": LIBDEVICE, **waves, **names})


def operands_of(target, kind) -> list:
    """Operands that suit an operator's schema: tensors, then a number where it takes one."""
    first, second = OPERANDS[kind]
    if any(name in str(target) for name in ("log.", "log2", "sqrt", "log1p")):
        first = first.abs() + 0.1
    if target is aten.where.self:
        return [TRUE, first, second]
    if target is aten.masked_fill.Scalar:
        return [first, TRUE, 1]
    required = [argument for argument in target._schema.arguments if not argument.has_default_value()]
    number = 0.75 if kind is Kind.FLOAT else True if kind is Kind.BOOL else 2
    return [first, *(second if str(argument.type) == "Tensor" else number for argument in required[1:])]


ROWS = [(target, kind) for target, row in table.TABLE.items() for kind in row.texts if row.code is None]


@pytest.mark.parametrize("backend", list(PLANS))
@pytest.mark.parametrize(("target", "kind"), ROWS, ids=[f"{target}-{kind.value}" for target, kind in ROWS])
def test_every_row_says_what_its_operator_does(target, kind, backend):
    operands = operands_of(target, kind)
    truth, result = target(*operands), torch.as_tensor(evaluated(target, operands, backend, kind))
    assert truth.dtype.is_floating_point == (result.dtype.is_floating_point and kind is Kind.FLOAT)
    torch.testing.assert_close(result.to(truth.dtype), truth, equal_nan=True, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wave", ["cos", "sin"])
def test_waves(wave):
    target = getattr(aten, wave).default
    torch.testing.assert_close(evaluated(target, [X]), target(X), equal_nan=True)


@pytest.mark.parametrize("exponent", [0.5, -0.5, 0.0, 1, 2, 3, -2, 8, 9, 12, 1.5, -9])
def test_powers(exponent):
    x = X.abs() + 0.1 if not float(exponent).is_integer() else X[X != 0]
    truth = aten.pow.Tensor_Scalar(x, exponent)
    result = torch.as_tensor(evaluated(aten.pow.Tensor_Scalar, [x, exponent])).to(x.dtype).expand_as(x)
    torch.testing.assert_close(result, truth, equal_nan=True)


@pytest.mark.parametrize("exponent", [0, 1, 3, 8])
def test_powers_of_integers(exponent):
    x = OPERANDS[Kind.INTEGER][0]
    result = torch.as_tensor(evaluated(aten.pow.Tensor_Scalar, [x, exponent], kind=Kind.INTEGER)).expand_as(x)
    assert torch.equal(result, x**exponent)
    assert pointwise(PLANS["cuda"], aten.pow.Tensor_Scalar, [Code.name("x"), Code.number(9)], torch.int64) is None


def test_powers_of_a_number():
    torch.testing.assert_close(evaluated(aten.pow.Scalar, [1.5, X]), aten.pow.Scalar(1.5, X), equal_nan=True)
    assert evaluated(aten.pow.Scalar, [1, X]) == 1.0  # of a NaN too
    for base in (-2, 0.0, math.inf):
        assert pointwise(PLANS["cuda"], aten.pow.Scalar, [Code.number(base), Code.name("x")], torch.float32) is None


@pytest.mark.parametrize("bounds", [(-0.7, 0.9), (-0.7, None), (None, 0.9)])
def test_clamp_keeps_nan(bounds):
    torch.testing.assert_close(evaluated(aten.clamp.default, [X, *bounds]), X.clamp(*bounds), equal_nan=True)


@pytest.mark.parametrize("target", [aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor], ids=str)
def test_alpha_scales_the_operand_that_is_meant(target):
    truth = target(X, Y, alpha=0.5)
    torch.testing.assert_close(evaluated(target, [X, Y, 0.5]), truth, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("target", [aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar], ids=str)
def test_alpha_of_a_number(target):
    torch.testing.assert_close(evaluated(target, [X, 2.0, 0.5]), target(X, 2.0, 0.5), equal_nan=True, rtol=0, atol=0)


def test_what_a_row_does_not_say_is_refused():
    x, y, three = Code.name("x"), Code.name("y"), Code.number(3)
    assert pointwise(PLANS["cuda"], aten.exp.default, [x, three], torch.float32) is None
    assert pointwise(PLANS["cuda"], aten.exp.default, [x], torch.int64) is None
    assert pointwise(PLANS["cuda"], aten.lt.Tensor, [x, y], torch.bool) is None
    assert pointwise(PLANS["cuda"], aten.add.Tensor, [x, y, three], torch.bool) is None
    assert not is_pointwise(aten.lgamma.default)
    with pytest.raises(KernelError, match=r"computes in torch.bfloat16"):
        pointwise(PLANS["cuda"], aten.add.Tensor, [x, y], torch.bfloat16)


def test_arguments_that_were_left_out_have_their_defaults():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    assert arguments(graph.call_function(aten.hardtanh.default, (x,))) == [x, -1, 1]
    assert arguments(graph.call_function(aten.clamp.default, (x,), {"max": 2})) == [x, None, 2]


def test_cosines_are_the_hardwares_in_half_precision_on_cuda_only():
    half = Layer(64, (64,), 16, "identity-0123", torch.bfloat16, torch.bfloat16)
    for plan, name in ((make_plan(half), "fast"), (make_plan(half, "hip"), "exact"), (PLANS["cuda"], "exact")):
        assert str(pointwise(plan, aten.cos.default, [Code.name("x")], torch.float32)) == f"{name}_cos(x)"


# In a kernel, with derivatives. Each is smooth, or its kinks are nowhere near a sampled number.
FUNCTIONS = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda h: torch.log(h * h + 0.5),
    "log2": lambda h: torch.log2(h.abs() + 0.5),
    "log1p": lambda h: torch.log1p(h * h),
    "sqrt": lambda h: torch.sqrt(h * h + 0.1),
    "rsqrt": lambda h: torch.rsqrt(h * h + 0.1),
    "reciprocal": lambda h: torch.reciprocal(h * h + 1),
    "divide": lambda h: h / (1 + h.abs()),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "sigmoid": torch.sigmoid,
    "tan": lambda h: torch.tan(h.tanh()),
    "sinh": lambda h: torch.sinh(h.tanh()),
    "cosh": lambda h: torch.cosh(h.tanh()),
    "cube": lambda h: h**3,
    "inverse square": lambda h: (h * h + 1) ** -2,
    "power 9": lambda h: h.tanh() ** 9,
    "power 1.5": lambda h: (h * h + 0.1) ** 1.5,
    "power 0.5": lambda h: (h * h + 0.1) ** 0.5,
    "power 0": lambda h: h * h**0,
    "power of a number": lambda h: 1.5**h,
    "clamp": lambda h: h.clamp(-0.7, 0.9),
    "clamp below": lambda h: h.clamp(min=-0.3),
    "maximum": lambda h: torch.maximum(h, 0.3 * h),
    "minimum": lambda h: torch.minimum(h.sin(), h.cos()),
    "where": lambda h: torch.where(h > 0.2, h.sin(), h * 0.5),
    "where both": lambda h: torch.where((h > -1) & ~(h >= 1), h * h, h),
    "sign": lambda h: h.sign() * h.abs(),
    "subtract from": lambda h: 1 - 2 * h,
    "subtract a part from": lambda h: torch.rsub(h, 2.0, alpha=0.5),
    "scaled add": lambda h: torch.add(h, h.sin(), alpha=0.5),
    "floor": lambda h: h - torch.floor(h.detach()),
    "through bfloat16": lambda h: h.sin() * (h.detach().bfloat16().float() * 0 + 1),
    "a constant": lambda h: h * 0 + torch.ones_like(h) * 0.5 + h.sin(),
}


# Of functions that are written alike one; `test_every_row_says_what_its_operator_does` has the rows of all.
IN_SUITE = {
    "exp", "log1p", "rsqrt", "divide", "erf", "tan", "cube", "power 1.5", "power of a number", "clamp below", "maximum",
    "where both", "subtract a part from", "floor", "through bfloat16", "a constant",
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(list(FUNCTIONS), IN_SUITE))
def test_in_a_kernel(name):
    check(branch_of(lambda rank: Pointwise(FUNCTIONS[name]), rank=12))


@pytest.mark.parametrize(
    "module",
    [
        *(nn.Softplus, nn.LogSigmoid, nn.PReLU, nn.Hardswish),
        *map(long, (nn.Mish, nn.ELU, nn.SELU, nn.Softsign, nn.ReLU6, nn.Hardtanh)),
    ],
)
def test_activations_of_pytorch(module):
    check(branch_of(lambda rank: module(), rank=12))
