"""Generated text as files: where a person finds it, a debugger shows it, and the next process finds it again.

    <cache>/kernels/g2/cosnet-3f2a…-4096to4096-r64-bf16/linear_up_forward_0c1d….py

The cache is `$NOBLE_FX_CACHE`, else `$XDG_CACHE_HOME/noble_fx`, else `~/.cache/noble_fx`. A path carries the
generator's version, the plan's digest and the text's digest, so two processes that write the same path write the same
bytes. What is on the disk is compared with the text in hand before it is used, and written again where it differs.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from pathlib import Path

from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import DTYPES, GENERATOR, Plan
from noble_fx.errors import KernelError
from noble_fx.files import write_atomically


def cache_folder() -> Path:
    """The folder of everything that this project caches on the disk; it need not exist yet."""
    if folder := os.environ.get("NOBLE_FX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "noble_fx"


def plan_name(plan: Plan) -> str:
    """A name for the plan that a person can read, unique by its digest."""
    layer = plan.layer
    act = re.sub(r"[^A-Za-z0-9_]+", "_", layer.act.rpartition("-")[0] or layer.act)[:40]
    shape = f"{layer.in_features}to{'+'.join(map(str, layer.out_features))}-r{layer.rank}-{DTYPES[layer.dtype]}"
    return f"{act}-{shape[:60]}-{_digest(repr(plan))}"


def write_kernel(plan: Plan, kernel: Kernel) -> Path:
    """The file that holds exactly this kernel's text; raises `KernelError` where none can be written."""
    inside = Path("kernels", f"g{GENERATOR}", plan_name(plan), f"{kernel.name}_{_digest(kernel.source)}.py")
    path = cache_folder() / inside
    try:
        return _ensure(path, kernel.source)
    except OSError:
        pass  # no home, a read-only file system, a full disk: a private folder will do for this process
    try:
        return _ensure(Path(_private_folder().name) / inside, kernel.source)
    except OSError as problem:
        raise KernelError(
            f"cannot write the generated kernel to {path} nor to a temporary folder ({problem.strerror or problem}); "
            "set NOBLE_FX_CACHE to a folder that can be written"
        ) from problem


def _ensure(path: Path, text: str) -> Path:
    wanted = text.encode("utf-8")
    if not path.is_file() or path.read_bytes() != wanted:
        write_atomically(path, wanted)
    return path


@functools.cache
def _private_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="noble_fx_")  # removed when the process ends


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
