"""The backward kernels.

    bottleneck_backward    dt = dy U,  then σ's vector–Jacobian product: t, dh, and partial sums of σ's gradients
    activation_backward    the same where dt comes from the vendor's GEMM (a wide bottleneck)
    reduce_partials        the partial sums of all row tiles, added up in a fixed order
    linear_backward_input  dx = Σ dy W + dh D in one accumulation

Backward keeps x and h only: σ(h) is computed again. Every row tile writes its own partial sums and one more kernel adds
them, so results do not depend on the order in which programs finish.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.plan import DTYPES, GENERATOR, Plan
from noble_fx.codegen.product import Out, Term, product
from noble_fx.codegen.sigma import (
    Narrow,
    Sigma,
    activation,
    activation_arguments,
    begin_rows,
    narrow_products,
    tensor_name,
    tile_name,
)
from noble_fx.codegen.source import Source
from noble_fx.errors import KernelError


@dataclass(frozen=True)
class Partial:
    """One gradient that is summed over the rows: its name, shape, and place in a row of `partials`."""

    name: str
    shape: tuple[int, ...]
    offset: int
    node: Any  # of σ's backward graph; None for the gradient of d, the sum of dh

    @property
    def size(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


@dataclass(frozen=True)
class RowProduct:
    """The gradient of one of σ's matrices as a product over the rows, leftᵀ · right, left to the vendor's GEMM."""

    name: str  # of the gradient
    left: fx.Node
    right: fx.Node
    transposed: bool


def row_products(plan: Plan) -> tuple[RowProduct, ...]:
    """The gradients that `activation_backward` leaves to a GEMM; raises `KernelError` where one is no such product."""
    if not plan.split_backward:
        return ()
    program = activation(plan)
    outputs = list(program.backward.graph.nodes)[-1].args[0][2:]
    found = []
    for name, node in zip(program.names, outputs, strict=False):
        if len(node.meta["val"].shape) == 2:
            found.append(_row_product(f"d_{tensor_name(name)}", node))
    return tuple(found)


def _row_product(name: str, node: Any) -> RowProduct:
    turned = False
    while node.op == "call_function" and node.target.__name__ == "t.default":
        node, turned = node.args[0], not turned
    left: Any = node.args[0] if node.args else None
    if node.op != "call_function" or node.target.__name__ != "mm.default" or left.target.__name__ != "t.default":
        raise KernelError(f"{name} is not one product over the rows, which a bottleneck of this width needs")
    return RowProduct(name, left.args[0], node.args[1], turned)


def partials(plan: Plan) -> tuple[Partial, ...]:
    """What a row of `partials` holds, in order."""
    program = activation(plan)
    outputs = list(program.backward.graph.nodes)[-1].args[0]
    elsewhere = {one.name for one in row_products(plan)}
    found, offset = [], 0
    if plan.layer.down_bias:
        found.append(Partial("d_down_bias", (plan.layer.rank,), 0, None))
        offset = plan.layer.rank
    for name, node in zip(program.names, outputs[2:], strict=False):
        gradient = f"d_{tensor_name(name)}"
        if gradient not in elsewhere:
            found.append(Partial(gradient, tuple(node.meta["val"].shape), offset, node))
            offset += found[-1].size
    return tuple(found)


def partials_width(plan: Plan) -> int:
    """Numbers in a row of `partials`, [programs, this]; 0 where nothing is summed."""
    return sum(one.size for one in partials(plan))


def bottleneck_backward(plan: Plan) -> Kernel:
    """dt = dy U, and everything that follows from dt and h alone; `activation_backward` where dt is given."""
    layer, tile, source = plan.layer, plan.bottleneck_backward, Source()
    name = "activation_backward" if plan.split_backward else "bottleneck_backward"
    arguments = _arguments(plan)
    dtype = DTYPES[layer.dtype]
    given = "dt [rows, {r}] {t}" if plan.split_backward else "dy [rows, {n}] {t}   U [{n}, {r}]"
    widths = " | ".join(map(str, layer.out_features))
    source.header(
        f"{name}: {'' if plan.split_backward else 'dt = dy U,  '}(t, dh, dσ) = σ and its vjp at h",
        [
            given.format(n=widths, r=layer.rank, t=dtype) + f"   h [rows, {layer.rank}] float32   σ: {layer.act}",
            f"t, dh [rows, {layer.rank}] {dtype}   partials [programs, {partials_width(plan)}] float32, one row a tile",
            f"one program: {tile.rows} rows of one site, steps of {tile.depth}",
            f"{plan.backend} · {tile.warps} warps · {tile.stages} stages · generator {GENERATOR}",
        ],
    )
    with source.function(name, arguments):
        _place(plan, source, arguments)
        sigma = Sigma(plan, source, tile, activation(plan).backward.graph, None)
        _inputs(plan, source, sigma)
        source.paragraph("σ and its vector–Jacobian product, as PyTorch traced and differentiated them")
        sigma.low.write()
        source.paragraph("t for dU, dh for dD and dx")
        sigma.store_rows(sigma.low.outputs[0], "t")
        sigma.store_rows(sigma.low.outputs[1], "dh")
        for one in row_products(plan):
            sigma.store_rows(one.left, f"{one.name}_left")
            sigma.store_rows(one.right, f"{one.name}_right")
        _store_partials(plan, source, sigma)
    up = layer.rank * sum(layer.out_features) * (not plan.split_backward)
    width = sum(layer.out_features) if not plan.split_backward else layer.sites * layer.rank
    return Kernel(
        name=name,
        source=str(source),
        arguments=tuple(arguments),
        row_tile=tile.rows,
        blocks=layer.sites,
        warps=tile.warps,
        stages=tile.stages,
        flops_per_row=2 * up,
        bytes_per_row=layer.dtype.itemsize * (width + 2 * layer.sites * layer.rank) + 4 * layer.sites * layer.rank,
        bytes_once=layer.dtype.itemsize * up,
    )


def _arguments(plan: Plan) -> list[Argument]:
    layer, element = plan.layer, f"*{DTYPES[plan.layer.dtype]}"
    arguments = []
    for site in range(layer.sites):

        def pointer(tensor: str, kind: str = element, site: int = site) -> Argument:
            return Argument(f"{layer.name(tensor, site)}_ptr", kind)

        arguments += [pointer("dt")] if plan.split_backward else [pointer("dy"), pointer("up")]
        arguments += [pointer("h", "*fp32"), *activation_arguments(plan, site), pointer("t"), pointer("dh")]
        for one in row_products(plan):
            arguments += [pointer(f"{one.name}_left"), pointer(f"{one.name}_right")]
        if partials_width(plan):
            arguments.append(pointer("partials", "*fp32"))
    arguments.append(Argument("rows", "i32"))
    if not plan.split_backward:
        arguments += [Argument(f"{layer.name('dy', site)}_stride_0", "i32") for site in range(layer.sites)]
    return arguments


def _place(plan: Plan, source: Source, arguments: list[Argument]) -> None:
    layer, tile = plan.layer, plan.bottleneck_backward
    if layer.sites == 1:
        source.paragraph("the rows of this program; what is read past the end is masked in every sum")
        source.line("row_tile = tl.program_id(0)")
    else:
        source.paragraph("which site; its tensors take the names without a number")
        source.line(f"row_tiles = tl.cdiv(rows, {tile.rows})")
        source.line("row_tile = tl.program_id(0) % row_tiles")
        source.line("site = tl.program_id(0) // row_tiles")
        names = [one.name for one in arguments if "_0_ptr" in one.name or "_0_stride" in one.name]
        for site in range(layer.sites):
            head = f"if site == {site}" if site == 0 else "else" if site == layer.sites - 1 else f"elif site == {site}"
            with source.block(head):
                for name in names:
                    mine = name.replace("_0_ptr", "_ptr").replace("_0_stride", "_stride")
                    given = name.replace("_0_ptr", f"_{site}_ptr").replace("_0_stride", f"_{site}_stride")
                    source.line(f"{mine} = {given}")
                if not plan.split_backward and len(set(layer.out_features)) > 1:
                    source.line(f"columns = {layer.out_features[site]}")
        source.paragraph("the rows of this program; what is read past the end is masked in every sum")
    begin_rows(source, tile.rows, "row_tile")


def _inputs(plan: Plan, source: Source, sigma: Sigma) -> None:
    """dt and h as tiles."""
    layer = plan.layer
    nodes = {"h": sigma.low.inputs[0], "dt": sigma.low.inputs[-1]}
    if not plan.split_backward:
        source.paragraph("dt = dy U, accumulated in float32")
        same = len(set(layer.out_features)) == 1
        depth = str(layer.out_features[0]) if same else "columns"
        segments = tuple(sigma.segments(nodes["dt"]))
        narrow_products(
            source, plan, plan.bottleneck_backward, "dy", depth, [Narrow("dt", "up", segments)], transposed=False
        )
    given = ["h", "dt"] if plan.split_backward else ["h"]
    source.paragraph(" and ".join(given))
    for name in given:
        segments = tuple(sigma.segments(nodes[name]))
        for segment in segments:
            index, last = sigma.low.index(segment), segment.start + segment.size - 1
            index = f"tl.minimum({index}, {last})" if segment.padded else index
            cast = "" if name == "h" or layer.dtype.itemsize == 4 else ".to(tl.float32)"
            address = f"{name}_ptr + row_read * {layer.rank} + {index}[None, :]"
            source.line(f"{tile_name(name, segment, segments)} = tl.load({address}){cast}")
    for name, node in nodes.items():
        sigma.bind(node, name)


def _store_partials(plan: Plan, source: Source, sigma: Sigma) -> None:
    if not partials_width(plan):
        return
    source.paragraph("this tile's share of the gradients that are summed over the rows")
    source.line(f"partials_row_ptr = partials_ptr + row_tile.to(tl.int64) * {partials_width(plan)}")
    for one in partials(plan):
        base = f"partials_row_ptr + {one.offset}" if one.offset else "partials_row_ptr"
        if one.node is None:
            value = sigma.low.value(sigma.low.outputs[1])
            for place in sigma.low.places(value):
                total = f"tl.sum({sigma.low.masked(value, place, [0])}, axis=0)"
                _store(source, sigma, base, (place[1],), one.shape, total)
            continue
        value = sigma.low.value(one.node)
        for place in sigma.low.places(value):
            _store(source, sigma, base, place, one.shape, sigma.low.solid(value.tiles[place], place))


def _store(source: Source, sigma: Sigma, base: str, place: Any, shape: tuple[int, ...], text: str) -> None:
    address, mask = sigma.address(base, place, shape)
    if "&" in mask:
        source.line(f"inside = {mask}")
        mask = "inside"
    source.line(f"tl.store({address}, {text}{f', mask={mask}' if mask else ''})")


def linear_backward_input(plan: Plan) -> Kernel:
    """dx = Σ over the sites of dy W + dh D, in one accumulation."""
    layer = plan.layer
    terms = []
    for site in range(layer.sites):
        dy, weight, dh, down = (layer.name(tensor, site) for tensor in ("dy", "weight", "dh", "down"))
        terms.append(Term(dy, weight, layer.out_features[site], transposed=False, strided=True))
        terms.append(Term(dh, down, layer.rank, transposed=False, strided=False))
    out = Out("dx", layer.in_features, tuple(terms))
    return product(plan, plan.linear_backward_input, "linear_backward_input", "dx = dy W + dh D", (out,))
