"""σ as a formula, written from its own traced graph: what stands at the head of every kernel that computes it.

    σ(h) = cos(ω₂ · (cos(ω₁ · h + φ₁) Mᵀ) + φ₂)

    u = h Mᵀ
    σ(h) = silu(u[.., 0:16]) · u[.., 16:32]

The graph is the one before operators are taken apart, so GELU is `gelu` here and an expression with erf in the kernel.
A value that is used several times gets a letter and a line of its own, before the line that uses it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from noble_fx.codegen.sigma.letters import SUBSCRIPTS, letters
from noble_fx.codegen.sigma.operators.pointwise import aten
from noble_fx.codegen.sigma.tiles import shape_of
from noble_fx.codegen.sigma.typed import plain_forward, typed_program

_SUM, _PRODUCT, _SIGN, _ATOM = range(4)  # how tightly a text binds
_LOCALS = "uvwzpqg"


@dataclass(frozen=True)
class Term:
    """A text, and how tightly it binds."""

    text: str
    binds: int = _ATOM

    def at(self, least: int) -> str:
        """The text beside what binds as tightly as `least`."""
        return self.text if self.binds >= least else f"({self.text})"


@functools.cache
def formula(key: str, rank: int) -> tuple[str, ...]:
    """The lines of σ's formula, σ itself the last; raises `Untraceable` where σ has no graph."""
    return Formula(plain_forward(key, rank), ["h", *letters(typed_program(key, rank).names).values()]).lines()


class Formula:
    """A graph and the letters of its inputs, on the way to text."""

    def __init__(self, graph: fx.Graph, inputs: list[str]) -> None:
        self.nodes = list(graph.nodes)
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        self._letters = dict(zip(placeholders, map(Term, inputs), strict=True))

    def lines(self) -> tuple[str, ...]:
        """What is used several times, in the order of the graph, then σ."""
        results = self.nodes[-1].args[0]
        result = results[0] if isinstance(results, (tuple, list)) else results
        lines: list[str] = []
        for node in self.nodes:
            if node.op == "call_function" and node is not result and self._shared(node):
                count, at = divmod(len(lines), len(_LOCALS))
                name = _LOCALS[at] + (str(count).translate(SUBSCRIPTS) if count else "")
                lines.append(f"{name} = {self.term(node).text}")
                self._letters[node] = Term(name)
        return (*lines, f"σ(h) = {self.term(result).text}")

    def term(self, arg: Any) -> Term:
        """A value of the graph, or an argument that is none, as a text."""
        if isinstance(arg, fx.Node):
            if arg in self._letters:
                return self._letters[arg]
            return _WRITERS.get(arg.target, _call)(self, arg)
        if isinstance(arg, (tuple, list)):
            return Term(f"[{', '.join(self.term(item).text for item in arg)}]")
        if isinstance(arg, (int, float)) and not isinstance(arg, bool):
            return Term(f"{arg:.6g}", _SIGN if arg < 0 else _ATOM)
        return Term(str(arg).removeprefix("torch."))

    def _shared(self, node: fx.Node) -> bool:
        """Whether a value that is computed would be written more than once."""
        return isinstance(node.meta.get("val"), torch.Tensor) and not _transparent(node) and self._uses(node) > 1

    def _uses(self, node: fx.Node) -> int:
        uses = 0
        for user in node.users:
            if user.op == "output":
                uses += 1
            elif _transparent(user):
                uses += self._uses(user)
            elif isinstance(user.meta.get("val"), torch.Tensor):  # not the sizes that are asked of it
                uses += _count(user.args, node)
        return uses


Writer = Callable[[Formula, Any], Term]


def _infix(sign: str, level: int, right_level: int, swapped: bool = False) -> Writer:
    """left sign right; `alpha` scales the right one (of a swapped one, `rsub`, the one that is taken away too)."""

    def write(write: Formula, node: Any) -> Term:
        left, right = map(write.term, node.args[1::-1] if swapped else node.args[:2])
        alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
        if alpha != 1:
            right = Term(f"{write.term(alpha).text} · {right.at(_SIGN)}", _PRODUCT)
        return Term(f"{left.at(level)} {sign} {right.at(right_level)}", level)

    return write


def _product(write: Formula, node: Any) -> Term:
    *bias, left, right = map(write.term, node.args)
    text = f"{left.at(_SIGN)} {right.at(_ATOM)}"
    return Term(f"{text} + {bias[0].at(_SUM)}", _SUM) if bias else Term(text, _PRODUCT)


def _same(write: Formula, node: Any) -> Term:
    return write.term(node.args[0])


def _transposed(write: Formula, node: Any) -> Term:
    return Term(f"{write.term(node.args[0]).at(_ATOM)}ᵀ")


def _negated(write: Formula, node: Any) -> Term:
    return Term(f"-{write.term(node.args[0]).at(_SIGN)}", _SIGN)


def _power(write: Formula, node: Any) -> Term:
    base, exponent = map(write.term, (*node.args, 2)[:2])
    whole = exponent.text.isdigit()
    return Term(base.at(_ATOM) + (exponent.text.translate(_RAISED) if whole else f"^{exponent.at(_ATOM)}"))


def _piece(write: Formula, node: Any) -> Term:
    """A piece of a split, or one result of several."""
    split, which = node.args
    if split.target not in _SPLITS:
        results = write.term(split)
        return results if which == 0 else Term(f"{results.at(_ATOM)}[{which}]")
    whole, sizes, *rest = split.args
    dim = rest[0] if rest else split.kwargs.get("dim", 0)
    size = shape_of(whole)[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    start = sum(sizes[:which])
    return _window(write.term(whole), whole, dim, start, start + sizes[which])


def _slice(write: Formula, node: Any) -> Term:
    whole, dim, start, end, step = (*node.args, *(0, 0, None, 1)[len(node.args) - 1 :])[:5]
    size = shape_of(whole)[dim]
    if start in (0, None) and (end is None or end >= size) and step == 1:
        return write.term(whole)
    end = size if end is None else min(end, size)
    return _window(write.term(whole), whole, dim, (start or 0) % size, end if end >= 0 else end + size, step)


def _window(term: Term, whole: fx.Node, dim: int, start: int, end: int, step: int = 1) -> Term:
    last = dim % len(shape_of(whole)) == len(shape_of(whole)) - 1
    return Term(f"{term.at(_ATOM)}[{'.., ' if last else ''}{start}:{end}{f':{step}' if step != 1 else ''}]")


def _joined(write: Formula, node: Any) -> Term:
    return write.term(node.args[0])


def _reciprocal(write: Formula, node: Any) -> Term:
    return Term(f"1 / {write.term(node.args[0]).at(_SIGN)}", _PRODUCT)


def _call(write: Formula, node: Any) -> Term:
    """name(arguments), the name without its overload."""
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", str(node.target)).strip("_")
    arguments = [write.term(arg).text for arg in node.args]
    arguments += [f"{key}={write.term(value).text}" for key, value in node.kwargs.items() if key in _TELLING]
    return Term(f"{name}({', '.join(arguments)})")


_TELLING = {"min", "max", "approximate", "rounding_mode", "keepdim", "dtype"}
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_SAME = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten.lift_fresh_copy.default,
)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)
_INFIX: tuple[tuple[str, str, int, int], ...] = (
    ("add", "+", _SUM, _SUM),
    ("sub", "-", _SUM, _PRODUCT),
    ("mul", "·", _PRODUCT, _SIGN),
    ("div", "/", _PRODUCT, _SIGN),
)
_COMPARED = {"eq": "=", "ne": "≠", "lt": "<", "le": "≤", "gt": ">", "ge": "≥"}
_WRITERS: dict[Any, Writer] = {
    **{
        getattr(getattr(aten, name), kind): _infix(sign, level, right)
        for name, sign, level, right in _INFIX
        for kind in ("Tensor", "Scalar")
    },
    **{
        getattr(getattr(aten, name), kind): _infix(sign, _SUM, _SUM)
        for name, sign in _COMPARED.items()
        for kind in ("Tensor", "Scalar")
    },
    aten.rsub.Scalar: _infix("-", _SUM, _PRODUCT, swapped=True),
    aten.rsub.Tensor: _infix("-", _SUM, _PRODUCT, swapped=True),
    aten.mm.default: _product,
    aten.addmm.default: _product,
    aten.t.default: _transposed,
    aten.neg.default: _negated,
    aten.reciprocal.default: _reciprocal,
    aten.square.default: _power,
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Scalar: _power,
    aten.slice.Tensor: _slice,
    operator.getitem: _piece,
    aten.cat.default: _joined,
    **dict.fromkeys(_SAME, _same),
}


def _count(args: Any, node: fx.Node) -> int:
    """How often a value stands among arguments."""
    if isinstance(args, (tuple, list)):
        return sum(_count(arg, node) for arg in args)
    return int(args is node)


def _transparent(node: fx.Node) -> bool:
    """Whether a value has the text of its operand, or a piece of it."""
    return node.target in _SAME or node.target in _SPLITS or node.target in (operator.getitem, aten.slice.Tensor)
