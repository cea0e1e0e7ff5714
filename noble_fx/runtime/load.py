"""From a kernel's text to the function that Triton launches.

Triton reads a kernel's source through `inspect`, so the text needs a file; what is executed, and what `inspect` is
given, is nevertheless the text in hand, so a file that somebody changed in between cannot slip in.
"""

from __future__ import annotations

import functools
import importlib.util
import linecache
import sys
import types
from typing import Any

from noble_fx.codegen.cache import write_kernel
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import Plan
from noble_fx.errors import KernelError


def have_triton() -> bool:
    """True where Triton can be imported; nothing is imported by asking."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def load_kernel(plan: Plan, kernel: Kernel) -> Any:
    """The kernel's `@triton.jit` function, written, executed and cached in this process; raises `KernelError`."""
    if not have_triton():
        raise KernelError('generated kernels need triton, which is not installed: pip install "triton>=3.6"')
    file = write_kernel(plan, kernel)
    # The same in every process: it is part of the key under which Triton caches what it compiles.
    path, name = str(file), f"noble_fx_kernels.{file.parent.name}.{file.stem}"
    module = types.ModuleType(name)
    module.__file__ = path
    # No modification time, so linecache and inspect keep to these lines whatever becomes of the file.
    linecache.cache[path] = (len(kernel.source), None, kernel.source.splitlines(keepends=True), path)
    sys.modules[name] = module  # inspect finds a function's module there
    try:
        exec(compile(kernel.source, path, "exec"), module.__dict__)
        return module.__dict__[kernel.name]
    except Exception as problem:
        del sys.modules[name]
        raise KernelError(f"the generated kernel {path} cannot be loaded: {problem}; please report it") from problem
