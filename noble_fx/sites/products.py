"""Which parameters a graph of aten operators multiplies with, and how: the sites beyond nn.Linear.

A weight is followed from the node that reads it through views (transpose, slice, select, split) to the products that
use it. A `View` says, for each axis it has left, which axis of the parameter it is and what range of it:

    W [3E, K] -> split(E)[1] -> t()        axes ((1, 0, K), (0, E, 2E)): rows E..2E of W, transposed

A branch belongs to the parameter, not to the product: rows E..2E of W go with rows E..2E of U.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from noble_fx.errors import Refusal
from noble_fx.sites.views import SPLITS, ShapeOf, View, bound, parameter_shapes, view_of

aten = torch.ops.aten
LINEAR_PRODUCTS = (aten.linear.default, F.linear, aten.addmm.default, aten.mm.default, aten.matmul.default)
CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),  # padding="same" or "valid"
)
EXPERT_PRODUCTS = (aten.bmm.default, aten.baddbmm.default)
GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback", "noble_fx::grouped_product")
EINSUM = aten.einsum.default


@dataclass(frozen=True)
class Product:
    """x [.., K] times a weight: which axes of the parameter are K, N and, for stacked experts, E."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    view: View
    inner: tuple[int, ...]  # positions in view.axes of the summed axes, K
    outer: tuple[int, ...]  # … of the axes of the result, N
    expert: int | None = None  # … of the axis that stacks experts
    bias: Any = None


@dataclass(frozen=True)
class Weight:
    """A parameter that graphs multiply with; `against`: what is unusual about that; `reader`: who else reads it."""

    parameter: str
    kind: str
    layout: str
    in_features: int
    out_features: int
    experts: int
    against: str = ""
    reader: str = ""
    form: str = ""  # of the products: "linear", "experts", "convolution" or "einsum"


# --- products --------------------------------------------------------------------------------------------------------

_FACTORS: dict[Any, tuple[str, str, str]] = {  # what the operators' schemas call x, the weight and the bias
    aten.linear.default: ("input", "weight", "bias"),
    F.linear: ("input", "weight", "bias"),
    aten.addmm.default: ("mat1", "mat2", "input"),
    aten.mm.default: ("input", "mat2", ""),
    aten.matmul.default: ("input", "other", ""),
    aten.bmm.default: ("input", "mat2", ""),
    aten.baddbmm.default: ("batch1", "batch2", ""),  # its bias stays with the product
}


def product_of(node: fx.Node, shape_of: ShapeOf) -> Product | Refusal | None:
    """The product at `node` with a parameter as its second factor; None if it is none, or what is unusual."""
    if node.op != "call_function":
        return None
    if node.target in LINEAR_PRODUCTS:
        return _linear_product(node, shape_of)
    if node.target in CONVOLUTIONS:
        return _convolution(node, shape_of)
    if node.target in EXPERT_PRODUCTS or is_grouped(node):
        return _expert_product(node, shape_of)
    return _einsum(node, shape_of) if node.target is EINSUM else None


def _linear_product(node: fx.Node, shape_of: ShapeOf) -> Product | Refusal | None:
    arguments = bound(node)
    x, weight, bias = list[Any](map(arguments.get, _FACTORS[node.target]))
    view = view_of(weight, shape_of)
    transposes = node.target in (aten.linear.default, F.linear)
    if view is None and view_of(x, shape_of) is not None and not transposes:
        return Refusal("it multiplies from the left, W x, along another axis than the last")
    if view is None or not isinstance(x, fx.Node):
        return None
    if transposes:
        return Product(node, x, weight, view, (1,), (0,), None, bias) if len(view.axes) == 2 else None
    if arguments.get("alpha", 1) != 1 or arguments.get("beta", 1) != 1:
        return Refusal("addmm with factors of its own")
    if len(view.axes) == 3 and node.target is aten.matmul.default and not view.fixed:
        return Product(node, x, weight, view, (1,), (2,), 0)
    if len(view.axes) != 2:
        return Refusal("a product with a vector")
    return Product(node, x, weight, view, (0,), (1,), None, bias)


def _expert_product(node: fx.Node, shape_of: ShapeOf) -> Product | Refusal | None:
    arguments = bound(node)
    if node.target in _FACTORS:
        x, weight = (arguments[name] for name in _FACTORS[node.target][:2])
    else:
        x, weight, *_ = arguments.values()  # one of several libraries' grouped products
    view = view_of(weight, shape_of)
    if view is None:
        return None
    if len(view.axes) != 3 or view.fixed or arguments.get("alpha", 1) != 1 or arguments.get("bias") is not None:
        return Refusal("stacked matrices in a product with factors of its own or of an unusual shape")
    return Product(node, x, weight, view, (1,), (2,), 0)


def _convolution(node: fx.Node, shape_of: ShapeOf) -> Product | Refusal | None:
    arguments = bound(node)
    weight, padding = arguments["weight"], arguments["padding"]
    view = view_of(weight, shape_of)
    if view is None:
        return None
    kernel = [stop - start for _, start, stop in view.axes[2:]]
    if set(kernel) != {1}:
        return Refusal(f"a convolution over {' × '.join(map(str, kernel))} positions, not 1 × 1")
    if arguments["groups"] != 1 or any(_sizes(padding)):  # "same" and "valid" pad nothing around one position
        return Refusal("a 1x1 convolution with groups or padding")
    return Product(node, arguments["input"], weight, view, (1,), (0,), None, arguments["bias"])


def _sizes(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []


def _einsum(node: fx.Node, shape_of: ShapeOf) -> Product | Refusal | None:
    equation, factors = (bound(node)[name] for name in ("equation", "tensors"))
    views = [view_of(factor, shape_of) for factor in factors]
    if not any(views):
        return None
    letters = parse_einsum(str(equation))
    if letters is None or len(views) != 2 or all(views):
        return Refusal(f"einsum {equation!r}, which is no product of one input with one weight")
    at = 0 if views[0] is not None else 1
    view: Any = views[at]
    x, weight, out = letters[1 - at], letters[at], letters[2]
    inner = tuple(i for i, c in enumerate(weight) if c in x and c not in out)
    outer = tuple(i for i, c in enumerate(weight) if c not in x and c in out)
    experts = [i for i, c in enumerate(weight) if i not in inner + outer]
    # An axis that x, the weight and the result share stacks maps; so does one that only the weight brings in, first.
    if not experts and len(outer) > 1 and len(weight) == 3 and len(inner) == 1 and out[0] == weight[0]:
        experts, outer = [0], tuple(i for i in outer if i != 0)
    if not inner or not outer or len(experts) > 1 or any(weight[i] not in out for i in experts) or view.fixed:
        return Refusal(f"einsum {equation!r}, which is no linear map of its input's features")
    return Product(node, factors[1 - at], factors[at], view, inner, outer, experts[0] if experts else None)


def parse_einsum(equation: str) -> tuple[str, str, str] | None:
    """("bk", "kn", "bn") of "bk,kn->bn"; None for other forms (ellipsis, repeated letters, implicit result)."""
    text = equation.replace(" ", "")
    if text.count(",") != 1 or text.count("->") != 1 or "." in text:
        return None
    factors, out = text.split("->")
    left, right = factors.split(",")
    unique = all(len(set(part)) == len(part) for part in (left, right, out))
    return (left, right, out) if unique and set(out) <= set(left + right) else None


def is_grouped(node: fx.Node) -> bool:
    """True for a grouped product x [S, K], w [E, K, N], offsets [E] -> [S, N]."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name in GROUPED


def weights_of(graphs: list[fx.Graph], model: nn.Module) -> dict[str, Weight]:
    """Every parameter of two or more axes that the graphs read, as a linear map or with the reason why it is none."""
    shape_of = parameter_shapes(model)
    uses: dict[str, list[Product | Refusal | fx.Node]] = {}
    for graph in graphs:
        for node in graph.nodes:
            view = view_of(node, shape_of) if node.op == "get_attr" else None
            if view is not None and len(view.axes) >= 2:
                uses.setdefault(view.parameter, []).extend(_uses(node, shape_of))
    return {name: _weight(name, tuple(model.get_parameter(name).shape), read) for name, read in uses.items() if read}


def _uses(node: fx.Node, shape_of: ShapeOf) -> Iterator[Product | Refusal | fx.Node]:
    """Per use of a weight: the product, the reason why it is an unusual one, or the node that is no product with it."""
    for user in node.users:
        if view_of(user, shape_of) is not None:
            yield from _uses(user, shape_of)
        elif user.target in SPLITS:
            for piece in user.users:
                yield from _uses(piece, shape_of)
        elif user.target is not aten.sym_size.int and "_assert_tensor_metadata" not in str(user.target):
            answer = product_of(user, shape_of)
            reads_other = isinstance(answer, Product) and view_of(answer.x, shape_of) is not None
            yield user if answer is None or reads_other else answer


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.replace("::", ".") if schema is not None else str(getattr(node.target, "__name__", node.target))


def _weight(name: str, shape: tuple[int, ...], uses: list[Product | Refusal | fx.Node]) -> Weight:
    against = next((use.reason for use in uses if isinstance(use, Refusal)), "")
    reader = next((f"read by {_name(use)} as well" for use in uses if isinstance(use, fx.Node)), "")
    products = [use for use in uses if isinstance(use, Product)]
    kind = _name(products[0].node) if products else "parameter"
    if products and is_grouped(products[0].node):
        kind = "grouped product"  # one operator on each device, and in each library, does it
    forms = {_form(product) for product in products}
    if len(forms) != 1:
        return Weight(name, kind, "", 0, 0, 0, against or ("read in ways that do not agree" if forms else ""), reader)
    ((inner, outer, expert),) = forms
    letters = {**dict.fromkeys(inner, "K"), **dict.fromkeys(outer, "N")} | ({expert: "E"} if expert is not None else {})
    layout = f"[{', '.join(letters.get(i, '1') for i in range(len(shape)))}]"
    if not against and any(not _whole(product, shape) for product in products):
        against = "only a part of its input features, or of its experts, is read at a time"
    ins, outs = (math.prod(shape[i] for i in axes) for axes in (inner, outer))
    form = _form_name(products[0])
    return Weight(name, kind, layout, ins, outs, shape[expert] if expert is not None else 0, against, reader, form)


def _form_name(product: Product) -> str:
    if _form(product)[2] is not None:
        return "experts"
    if product.node.target in CONVOLUTIONS:
        return "convolution"
    return "einsum" if product.node.target is EINSUM else "linear"


def _whole(product: Product, shape: tuple[int, ...]) -> bool:
    """False where a slice leaves out input features or experts."""
    positions = product.inner if product.expert is None else (*product.inner, product.expert)
    return all(product.view.axes[i] == (axis, 0, shape[axis]) for i in positions for axis in [product.view.axes[i][0]])


def _form(product: Product) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    axes, fixed = product.view.axes, product.view.fixed
    expert = axes[product.expert][0] if product.expert is not None else next(iter(fixed), None)
    return tuple(axes[i][0] for i in product.inner), tuple(axes[i][0] for i in product.outer), expert
