"""The generated kernels of a model's layers, highlighted; nothing is compiled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.report.kernel_set import layer_kernel_set
from noble_fx.errors import KernelError
from noble_fx.explaining.account import Account
from noble_fx.explaining.kernels import KernelAccount

if TYPE_CHECKING:
    from markupsafe import Markup

_PLAIN = re.compile(r'<span class="(?:n|p|o|w|nb|err|mi|mf|mh|bp)">([^<]*)</span>')  # what no style tells from the rest

LAYERS = 12  # whose kernels are listed: those of most sites
TEXTS = 2  # of them, with the text


class Source(NamedTuple):
    """One kernel."""

    kernel: Kernel
    lines: int
    code: Markup | None  # None where the text is not shown


class LayerKernels(NamedTuple):
    """What one kind of layer has."""

    account: KernelAccount
    sources: list[Source]
    without: str  # why they have none


def layers(account: Account) -> list[LayerKernels]:
    """The kinds of layers, those of most sites first; the first few with the text of their kernels."""
    kinds = sorted(account.kernels, key=lambda kind: -kind.sites)
    return [_generated(kind, with_text=at < TEXTS) for at, kind in enumerate(kinds[:LAYERS])]


def _generated(kind: KernelAccount, with_text: bool) -> LayerKernels:
    try:
        found = layer_kernel_set(kind.layer).kernels.values()
    except KernelError as error:
        return LayerKernels(kind, [], str(error))
    return LayerKernels(kind, [_source(each, with_text) for each in found], "")


def _source(kernel: Kernel, with_text: bool) -> Source:
    lines = len(kernel.source.splitlines())
    return Source(kernel, lines, _highlighted(kernel.source) if with_text else None)


def _highlighted(source: str) -> Markup:
    """Python as spans of HTML, everything else escaped."""
    from markupsafe import Markup
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return Markup(_PLAIN.sub(r"\1", highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))))
