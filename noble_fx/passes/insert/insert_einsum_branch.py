"""Add the branch beside an einsum of an input with a weight."""

from __future__ import annotations

import math
import operator

from torch import fx

from noble_fx.passes.build import Build
from noble_fx.passes.example import IN, OUT, Example, parameter
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.sites.products import EINSUM, parse_einsum

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
    found = graph.product(node)
    if isinstance(found, Skip):
        return found
    product, path = found
    one, other, out = parse_einsum(str(node.args[0]))  # type: ignore[misc]
    x, w = (one, other) if node.args[1][0] is product.x else (other, one)  # type: ignore[index]
    inner, outer = ([w[i] for i in positions] for positions in (product.inner, product.outer))
    sizes = [stop - start for _, start, stop in product.view.axes]
    shape = graph.shape_of(product.view.parameter)
    if shape is None or [sizes[i] for i in product.outer] != [shape[product.view.axes[i][0]] for i in product.outer]:
        return Skip("an einsum with a part of the weight")
    expert = w[product.expert] if product.expert is not None else ""
    rest = [c for c in x if c not in inner and c != expert]
    order = [*rest, *inner]
    value = product.x
    if expert:  # nobles() takes [.., E, T, K]; an input without E is the same for every expert
        rest = rest or [""]
        order = [*rest[:-1], expert, rest[-1], *inner]
    present = [c for c in order if c in x and c]
    value = build.method("permute", value, [x.index(c) for c in present])
    if len(inner) > 1:
        value = build.method("flatten", value, -len(inner))
    if expert and rest == [""]:
        value = build.method("unsqueeze", value, -2)
    if expert and expert not in x:
        value = build.method("unsqueeze", value, -3)
    value = build.module(path, value)
    if expert and rest == [""]:
        value = build.method("squeeze", value, -2)
    if len(outer) > 1:
        value = build.method("unflatten", value, -1, [sizes[w.index(c)] for c in outer])
    have = [c for c in [*order[: len(order) - len(inner)], *outer] if c]
    assert math.prod(sizes[w.index(c)] for c in outer) > 0
    return build.call(operator.add, build.again(), build.method("permute", value, [have.index(c) for c in out]))
