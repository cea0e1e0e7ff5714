"""What this package uses of torch's private parts, and what differs between torch 2.11 and 2.15: nowhere else.

all        names without an underscore exist in every release and are used where they are needed;
           `torch.utils._pytree` and `torch._dynamo`'s list of backends too, which torch's own pages name
2.11       a CUDA build without a GPU keeps using what belonged to the thread that traced first (below)
"""

from __future__ import annotations

import functools
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._decomp import get_decompositions
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.node import _get_qualified_name as qualified_name
from torch.utils._python_dispatch import TorchDispatchMode

from noble_fx.errors import ConfigError
from noble_fx.wrappers import wrapper

__all__ = [
    "ABOUT_SHAPES",
    "RELEASE",
    "FunctionalTensorMode",
    "HigherOrderOperator",
    "Inductor",
    "OpOverload",
    "OpOverloadPacket",
    "TorchDispatchMode",
    "decides_on_values",
    "decompositions",
    "forget_compiled",
    "graph_pass",
    "inductor",
    "is_compiled",
    "likely_size",
    "merge_equal_nodes",
    "onnx_library_read_once",
    "qualified_name",
    "shapes_before_sharding",
    "stays_whole",
    "tf32_products",
    "tracers_of_this_thread",
    "unknown_sizes",
]

RELEASE: tuple[int, int] = tuple(map(int, torch.__version__.split(".")[:2]))  # type: ignore[assignment]

if RELEASE == (2, 11):
    # A CUDA build on a machine without a GPU crashes where tensors are first faked on a thread that has ended since,
    # and σ is traced on a thread of its own. So the first fake mode is entered here, on the thread that imports this.
    with FakeTensorMode():
        pass

# Words of torch.export's errors that are about the dynamic sizes which it was given; there is no class for them.
ABOUT_SHAPES = ("dynamic_shapes", "onstraint", "dynamic dim", "marked as dynamic", "Dim.")
HOMES_OF_FUNCTIONAL = ("torch.nn.functional", "torch._C._nn")  # where what one calls as F.gelu is from
_ABOUT_VALUES = ("GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException")


def decides_on_values(error: BaseException) -> bool:
    """Whether an error of torch.export's is about Python code that decides on the values of a tensor."""
    return type(error).__name__ in _ABOUT_VALUES or "data-dependent" in str(error)


class UnknownSizes(NamedTuple):
    """Sizes of which nothing is known, the mode whose tensors may have them, and whether anything was assumed since."""

    sizes: list[torch.SymInt]
    mode: FakeTensorMode
    assumed: Callable[[], bool]


@contextmanager
def unknown_sizes(count: int) -> Iterator[UnknownSizes]:
    """Sizes for tracing; where something is decided by one, tracing raises what `decides_on_values` knows."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # which imports sympy: half a second

    shapes = ShapeEnv()
    sizes = [shapes.create_unbacked_symint() for _ in range(count)]
    for size in sizes:
        torch._check(size >= 0)

    def assumed() -> bool:
        asserts = [each.expr for group in shapes.deferred_runtime_asserts.values() for each in group]
        return bool(shapes.guards) or not all(_holds(expression, sizes) for expression in asserts)

    log = logging.getLogger("torch._subclasses.fake_tensor")
    mode, silent = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True), log.disabled
    log.disabled = True  # it reports what is raised, with pages of advice
    try:
        yield UnknownSizes(sizes, mode, assumed)
    finally:
        log.disabled = silent


def _holds(expression: Any, sizes: list[torch.SymInt]) -> bool:
    """Whether it says nothing about these sizes: torch notes that the places of a tensor are no negative numbers."""
    symbols = [size.node.expr for size in sizes]
    tried = itertools.product(range(1, 9), repeat=len(symbols))
    return all(expression.subs(dict(zip(symbols, values, strict=True))) == True for values in tried)  # noqa: E712


class _OnThread:
    """True on one thread, False on every other."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self.thread


@contextmanager
def tracers_of_this_thread() -> Iterator[None]:
    """Inside, what tracers put into classes in place of methods, and their flag, are for the tracing thread alone."""
    module: Any = fx._symbolic_trace
    patcher: Any = getattr(module, "_Patcher", None)
    if not hasattr(patcher, "patch_method"):
        yield
        return
    patch_method, threads = patcher.patch_method, []

    def for_one_thread(self: Any, kind: type, name: str, function: Any, *args: Any, **kwargs: Any) -> None:
        before, here = getattr(kind, name), _OnThread()
        threads.append(here)

        @functools.wraps(function)
        def method(*args: Any, **kwargs: Any) -> Any:
            return (function if here else before)(*args, **kwargs)

        patch_method(self, kind, name, method, *args, **kwargs)
        if getattr(module, "_is_fx_tracing_flag", False):  # compiled functions ask it; the tracer sets it back
            module._is_fx_tracing_flag = here

    patcher.patch_method = for_one_thread
    try:
        yield
    finally:
        patcher.patch_method = patch_method
        for here in threads:
            here.thread = None  # a tracer of the user's on another thread may leave our method in the class: nobody's


def stays_whole(types: Iterable[type]) -> bool:
    """Whether an operator that AOTAutograd meets is not to come apart: a program is exported, or a class of tensors has
    a say of its own."""
    disabled = not getattr(torch._functorch.config, "decompose_custom_triton_ops", True)
    return disabled or not set(types) <= {torch.Tensor, nn.Parameter, FunctionalTensor}


def likely_size(size: int | torch.SymInt) -> int:
    """A size as it was when the graph was traced, without a guard on it."""
    if isinstance(size, int):
        return size
    from torch.fx.experimental import symbolic_shapes  # which imports sympy

    if hasattr(symbolic_shapes, "optimization_hint"):
        return int(symbolic_shapes.optimization_hint(size, fallback=_ROWS))
    hint = size.node.shape_env.size_hint(size.node.expr, allow_none=True)  # 2.11
    return _ROWS if hint is None else int(hint)


_ROWS = 4096  # a batch of a few thousand tokens, where nothing is known


def merge_equal_nodes(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph in which what is computed twice is computed once."""
    from torch._functorch.compile_utils import fx_graph_cse  # which imports sympy

    return fx_graph_cse(graph)


def decompositions(names: Iterable[str]) -> dict[Any, Callable[..., Any]]:
    """How torch takes these aten operators apart; a name that this release of torch does not have is left out."""
    return get_decompositions([getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)])


@functools.cache
def _answered_once(question: Callable[[], Any]) -> Any:
    return question()


@contextmanager
def onnx_library_read_once() -> Iterator[None]:
    """Inside, the ONNX exporter reads its library of operators for the first file alone.

    It parses the source of five hundred functions for every file, a fifth of the time that a small model takes.
    """
    from torch.onnx._internal.exporter import _registration

    library: Any = getattr(_registration, "onnxscript_apis", None)
    read = getattr(library, "get_torchlib_ops", None)
    if read is None:
        yield
        return
    library.get_torchlib_ops = lambda: _answered_once(read)
    try:
        yield
    finally:
        library.get_torchlib_ops = read


def is_compiled(model: Any) -> bool:
    """Whether it is what `torch.compile(module)` gives."""
    return isinstance(model, torch._dynamo.OptimizedModule)


def uncompiled() -> AbstractContextManager[object]:
    """Inside, compiled parts run their Python, where layers are called; without Dynamo there are none."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def forget_compiled() -> None:
    """Let Dynamo compile all anew: before torch 2.13 it does not see that a layer has another class."""
    if torch.__version__ < "2.13":
        torch._dynamo.reset()


def shapes_before_sharding(model: nn.Module) -> dict[int, torch.Size]:
    """By identity, the shapes that parameters had before FSDP1 made flat shards of them; there is no public question.

    Raises `ConfigError` where a model is in FSDP1 and this release of torch keeps them elsewhere.
    """
    shapes: dict[int, torch.Size] = {}
    for module in model.modules():
        handle = getattr(module, "_handle", None) if wrapper(module) == "FullyShardedDataParallel" else None
        if handle is None:
            continue
        flat: Any = getattr(handle, "flat_param", None)
        if not hasattr(flat, "_params") or not hasattr(flat, "_shapes"):
            raise ConfigError(
                "the model is in FSDP1, and this release of torch does not say which of its flat shards are matrices; "
                "pass base=…, your own groups for the base model, or wrap by fully_shard"
            )
        shapes |= {id(p): shape for p, shape in zip(flat._params or (), flat._shapes, strict=False)}
    return shapes


def tf32_products() -> bool:
    """Whether float32 products may run in TF32. Reading the older `allow_tf32` raises once a program has set this."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


class Inductor(NamedTuple):
    """The parts of Inductor that the backend builds on."""

    compile_fx: Callable[..., Any]
    list_mode_options: Callable[[str], dict[str, Any]]
    config: Any
    first_pass: str  # the option that holds the pass of `graph_pass`


def inductor() -> Inductor:
    """Inductor, imported when it is asked for: that takes seconds."""
    from torch._inductor import config, list_mode_options
    from torch._inductor.compile_fx import compile_fx

    return Inductor(compile_fx, list_mode_options, config, "post_grad_custom_pre_pass")


def graph_pass(run: Callable[[fx.Graph], None], uuid: Callable[[], Any]) -> Any:
    """A pass for Inductor that does `run` and has a `uuid`, which becomes part of the key of Inductor's cache."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class GraphPass(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            run(graph)

        def uuid(self) -> Any:
            return uuid()

    return GraphPass()
