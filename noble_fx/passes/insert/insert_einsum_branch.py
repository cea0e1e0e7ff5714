"""Add the branch beside an einsum of an input with a weight."""

from __future__ import annotations

import operator

from torch import fx

from noble_fx.passes.build import Build
from noble_fx.passes.example import IN, OUT, Example, parameter
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.sites.products import EINSUM, Product, parse_einsum
from noble_fx.sites.views import bound

_EXAMPLE = Example(
    before=lambda m, x: EINSUM("kb,kn->bn", [x, m.w]),
    after=lambda m, x: EINSUM("kb,kn->bn", [x, m.w]) + m.noble.w(x.permute([1, 0])).permute([0, 1]),
    truth=lambda m, x: x.t() @ m.w + m.noble.w(x.t()),
    model=parameter(IN, OUT),
    inputs=((IN, 5),),
)


@rule(EINSUM, example=_EXAMPLE)
def insert_einsum_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """einsum("…k…,…kn… -> …n…", x, w)  ->  einsum(…) + noble(x with k last), its n where the result has them"""
    site = graph.product(node)
    if isinstance(site, Skip):
        return site
    product, path = site
    sizes = [stop - start for _, start, stop in product.view.axes]
    shape = graph.shape_of(product.view.parameter)
    if shape is None or [sizes[i] for i in product.outer] != [shape[product.view.axes[i][0]] for i in product.outer]:
        return Skip("an einsum with a part of the weight")
    x, w, out = _letters(node, product)
    inner, outer = ([w[i] for i in positions] for positions in (product.inner, product.outer))
    expert = w[product.expert] if product.expert is not None else ""
    rows = [letter for letter in x if letter not in inner and letter != expert]
    leading = [*rows[:-1], expert, *rows[-1:]] if expert else rows  # nobles() takes [.., E, T, K]

    features = build.method("permute", product.x, [x.index(letter) for letter in (*leading, *inner) if letter in x])
    if len(inner) > 1:
        features = build.method("flatten", features, -len(inner))
    if expert and not rows:  # one row for each expert
        features = build.method("unsqueeze", features, -2)
    if expert and expert not in x:  # the same rows for every expert
        features = build.method("unsqueeze", features, -3)
    result = build.module(path, features)
    if expert and not rows:
        result = build.method("squeeze", result, -2)
    if len(outer) > 1:
        result = build.method("unflatten", result, -1, [sizes[i] for i in product.outer])
    order = [*leading, *outer]
    return build.call(operator.add, build.again(), build.method("permute", result, [order.index(c) for c in out]))


def _letters(node: fx.Node, product: Product) -> tuple[str, str, str]:
    """The equation's letters of x, of the weight and of the result."""
    equation, factors = (bound(node)[name] for name in ("equation", "tensors"))
    left, right, out = parse_einsum(equation)  # type: ignore[misc]
    return (left, right, out) if factors[0] is product.x else (right, left, out)
