"""The CUDA side's Python on a machine without a GPU: CPU tensors take it, and every launch is counted instead of made.

What runs is all that runs on a GPU up to Triton's compiled launcher; the vendor's products run on the CPU, as those of
the plain layer beside them do.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from noble_fx.codegen.plan import SHARED_BYTES
from noble_fx.ops import available, cuda, direct, routes
from noble_fx.runtime import compiled, launch


class Stub:
    """A kernel whose launches are counted, compiled from the first one on."""

    def __init__(self, name: str, launches: Counter[str]):
        def run(*arguments: Any) -> None:
            launches[name] += 1

        self.run, self.function, self.packed_metadata = run, 0, ()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self


@contextmanager
def launches_stubbed() -> Iterator[Counter[str]]:
    """Inside, operators on CPU tensors run as on an sm_90; yields how often each kernel was started."""
    launches: Counter[str] = Counter()
    stubs: dict[tuple[Any, ...], Stub] = {}

    def load(plan: Any, kernel: Any) -> Stub:
        return stubs.setdefault((plan, kernel.name), Stub(kernel.name, launches))

    driver = SimpleNamespace(get_current_device=lambda: None, get_current_stream=lambda index: 0)
    gpu = available.Gpu("cuda", SHARED_BYTES["sm_90"])
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"NOBLE_FX_TUNE": "0"}))
        stack.enter_context(patch.object(available, "gpu_of", lambda device: gpu))
        stack.enter_context(patch.object(routes, "is_final", lambda question, variants: True))  # as once measured
        stack.enter_context(patch.object(launch, "load_kernel", load))
        stack.enter_context(patch.object(compiled, "_driver", lambda: driver))
        stack.enter_context(patch.dict(direct.IMPLEMENTATIONS, {"cpu": direct.IMPLEMENTATIONS["cuda"]}))
        library = stack.enter_context(torch.library._scoped_library("noble_fx", "IMPL"))
        cuda.register(library, "CPU")
        routes.forget()
        yield launches
    routes.forget()
