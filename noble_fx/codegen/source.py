"""The text of one generated file: a docstring with the maths and the plan, imports, functions, paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from noble_fx.codegen.kernel import Argument

_WIDTH = 120


class Source:
    """Lines of Python, indented; the result is what `ruff format` would leave as it is."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0
        self._once: set[str] = set()
        self._comment = ""

    def line(self, text: str = "") -> None:
        """One statement at the current depth, on as many lines as it needs; empty for a blank line."""
        if self._comment and text:
            if self._lines and self._lines[-1] and not self._lines[-1].endswith(":"):
                self._lines.append("")
            self._lines.append(f"{'    ' * self._depth}# {self._comment}")
            self._comment = ""
        self._lines += _wrapped("    " * self._depth, text) if text else [""]

    def once(self, text: str) -> None:
        """A line that the function holds only once, at its first place; not for lines inside a block."""
        if text not in self._once:
            self._once.add(text)
            self.line(text)

    def paragraph(self, comment: str) -> None:
        """A blank line and a comment that says what the next lines do; nothing where no line follows."""
        self._comment = comment

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """`head:` and its indented body."""
        self.line(f"{head}:")
        self._depth += 1
        yield
        self._depth -= 1

    def head(self, docstring: Sequence[str]) -> None:
        """The docstring, of these lines, and the imports."""
        first, *rest = docstring
        self._lines += [f'"""{first}', *rest, '"""', ""]
        self.line("import triton")
        self.line("import triton.language as tl")

    @contextmanager
    def function(self, name: str, arguments: Sequence[Argument]) -> Iterator[None]:
        """One `@triton.jit` function."""
        self._once.clear()
        self.line()
        self.line()
        self.line("@triton.jit")
        names = [argument.name for argument in arguments]
        together = f"def {name}({', '.join(names)})"
        if len(together) < 88:
            with self.block(together):
                yield
            return
        self.line(f"def {name}(")
        for argument in names:
            self.line(f"    {argument},")
        with self.block(")"):
            yield

    def __str__(self) -> str:
        """The whole file, with the device library and the fast waves where a line uses them."""
        text = "\n".join(self._lines) + "\n"
        for kind, constants, function in (("fast", _TURNS, _FAST), ("exact", _QUARTERS, _EXACT)):
            waves = [wave for wave in _WAVES if f"{kind}_{wave}(" in text]
            if waves:
                functions = "".join(function.format(wave=wave, **_WAVES[wave]) for wave in waves)
                text = text.replace(_IMPORTS, _IMPORTS + constants + functions)
        extremes = "".join(_EXTREME.format(name=name) for name in ("max", "min") if f"nan_{name}(" in text)
        text = text.replace(_IMPORTS, _IMPORTS + extremes) if extremes else text
        if "libdevice." in text:
            text = text.replace(_IMPORTS, f"{_IMPORTS}from triton.language.extra import libdevice\n")
        return text


_IMPORTS = "import triton\nimport triton.language as tl\n"
_TURNS = """
# 2π as the sum of two float32 numbers, and the turns in a radian.
TWO_PI_HIGH = tl.constexpr(6.2831854820251465)
TWO_PI_LOW = tl.constexpr(-1.7484556000744883e-07)
TURNS = tl.constexpr(0.15915494309189535)
"""
_QUARTERS = """
# π/2 as the sum of three numbers, the first with few bits, so that its multiples are exact (Cody and Waite); the
# quarters of a turn in a radian.
HALF_PI_HIGH = tl.constexpr(1.5703125)
HALF_PI_MIDDLE = tl.constexpr(4.837512969970703e-4)
HALF_PI_LOW = tl.constexpr(7.549789954891882e-8)
QUARTERS = tl.constexpr(0.6366197723675814)
"""
_WAVES = {
    "cos": {"even": "even", "odd": "odd", "negative": "(turn == 1.0) | (turn == 2.0)"},
    "sin": {"even": "odd", "odd": "even", "negative": "turn >= 2.0"},
}
_EXTREME = """

@triton.jit
def nan_{name}(tile, axis: tl.constexpr, keep_dims: tl.constexpr = False):
    # tl.{name} passes over a NaN; here one makes the result NaN, as in PyTorch.
    nans = tl.max((tile != tile).to(tl.int32), axis=axis, keep_dims=keep_dims)
    return tl.where(nans > 0, float("nan"), tl.{name}(tile, axis=axis, keep_dims=keep_dims))
"""
_FAST = """

@triton.jit
def fast_{wave}(angle):
    # The hardware's {wave} is good near zero only: full turns are taken off first, in float32.
    turns = libdevice.rint(angle * TURNS)
    return libdevice.fast_{wave}f(angle - turns * TWO_PI_HIGH - turns * TWO_PI_LOW)
"""


def _wrapped(indent: str, text: str) -> list[str]:
    """A statement as `ruff format` lays it out: on one line, else with the last call that allows it laid open."""
    if len(indent + text) <= _WIDTH or "(" not in text:
        return [indent + text]
    # The last pair of outermost parentheses whose head still fits.
    begin, end = next(pair for pair in reversed(_pairs(text)) if len(indent) + pair[0] < _WIDTH)
    head, body, tail = text[: begin + 1], text[begin + 1 : end], text[end:]
    inner = f"{indent}    "
    lines = [inner + body]
    if len(inner + body) > _WIDTH:
        lines = [f"{inner}{argument}," for argument in _arguments(body)]
    return [indent + head, *lines, indent + tail]


def _pairs(text: str) -> list[tuple[int, int]]:
    """Where the outermost parentheses open and close."""
    pairs, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "([":
            if depth == 0:
                begin = at
            depth += 1
        elif letter in ")]":
            depth -= 1
            if depth == 0 and letter == ")":
                pairs.append((begin, at))
    return pairs


def _arguments(body: str) -> list[str]:
    """The arguments of a call, apart."""
    arguments, depth = [""], 0
    for letter in body:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += letter
    return [argument.strip() for argument in arguments]


_EXACT = """

@triton.jit
def exact_{wave}(angle):
    # The angle is brought into [-π/4, π/4] of one of four quarters; there sine and cosine are short polynomials, good
    # to 1e-7 (Cephes, sinf.c). The library's own cosine would bring thousands of instructions for
    # arguments over 100,000, at which a float32 angle has no more than two digits.
    quarter = tl.floor(angle * QUARTERS + 0.5)
    rest = angle - quarter * HALF_PI_HIGH - quarter * HALF_PI_MIDDLE - quarter * HALF_PI_LOW
    # Of an angle of millions no digit of the rest is left; kept within reach of the polynomials, a wave stays a wave.
    rest = tl.maximum(rest, -1.0, propagate_nan=tl.PropagateNan.ALL)
    rest = tl.minimum(rest, 1.0, propagate_nan=tl.PropagateNan.ALL)
    square = rest * rest
    odd = rest + rest * square * ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1)
    even = ((2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2) * square
    even = 1.0 - 0.5 * square + even * square
    turn = quarter - 4.0 * tl.floor(quarter * 0.25)
    wave = tl.where((turn == 1.0) | (turn == 3.0), {odd}, {even})
    return tl.where({negative}, -wave, wave)
"""
