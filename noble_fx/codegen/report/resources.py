"""What the compiler makes of a kernel, on a machine that needs no GPU: registers, spills, shared memory, instructions.

Triton compiles for any `GPUTarget`, and its wheel carries NVIDIA's disassembler. The figures say before any run whether
a kernel spills, whether its products reach the tensor cores, and what a cosine costs. They say nothing about time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from noble_fx.codegen.cache import write_kernel
from noble_fx.codegen.kernel import Argument, Kernel
from noble_fx.codegen.plan import Plan
from noble_fx.codegen.report import compile_offline
from noble_fx.errors import KernelError, nearest

# name -> backend, architecture, threads of a warp
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
    "gfx950": ("hip", "gfx950", 64),
}
# Given and not left to Triton, whose default changes with 3.10: products and sums may become one instruction.
FP_FUSION = True


@dataclass(frozen=True)
class Resources:
    """One compiled kernel: per thread registers and bytes of local memory (stack and spills), per block shared bytes.

    `opcodes` counts the machine instructions by full name ("MUFU.COS"); padding is not counted.
    """

    registers: int
    local_bytes: int
    shared_bytes: int
    instructions: int
    opcodes: dict[str, int]

    def count(self, prefix: str) -> int:
        """How many instructions there are whose name starts with `prefix`: "HGMMA", "MUFU.COS", "v_mfma"."""
        return sum(count for name, count in self.opcodes.items() if name.startswith(prefix))


def backend_of(target: str) -> str:
    """Triton's backend for a target; raises `KernelError` for one that is not known."""
    if target not in TARGETS:
        raise KernelError(
            f"target={target!r} is unknown{nearest(str(target), TARGETS)}; use one of {', '.join(TARGETS)}"
        )
    return TARGETS[target][0]


def compile_kernels(plan: Plan, kernels: Iterable[Kernel], target: str) -> dict[str, Resources]:
    """Compile each kernel for `target` in a child process; raises `KernelError` with what the compiler said."""
    backend = backend_of(target)
    if find_spec("triton") is None:
        raise KernelError('compiling kernels needs triton, which is not installed: pip install "triton>=3.6"')
    _, arch, warp_size = TARGETS[target]
    with tempfile.TemporaryDirectory(prefix="noble_fx_") as folder:
        job = {
            "backend": backend,
            "arch": arch,
            "warp_size": warp_size,
            "folder": folder,
            "kernels": [_job(plan, kernel) for kernel in kernels],
        }
        binaries = _run(job, target)
        read = _read_cubin if backend == "cuda" else _read_amdgcn
        return {name: read(Path(binary["file"]), binary["shared"]) for name, binary in binaries.items()}


def _job(plan: Plan, kernel: Kernel) -> dict[str, Any]:
    """The arguments as Triton would specialise them at a launch: ones are constants, sixteenfolds are said to be so."""
    signature, constants, attributes = {}, {}, {}
    for index, argument in enumerate(kernel.arguments):
        value = _typical(plan, argument)
        signature[argument.name] = "constexpr" if value == 1 else argument.type
        if value == 1:
            constants[index] = 1
        elif value % 16 == 0:
            attributes[index] = [["tt.divisibility", 16]]
    return {
        "name": kernel.name,
        "path": str(write_kernel(plan, kernel)),
        "signature": signature,
        "constants": constants,
        "attributes": attributes,
        "options": {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": FP_FUSION},
    }


def _typical(plan: Plan, argument: Argument) -> int:
    """A value of an argument as in a contiguous layer at an aligned address; 0 for a pointer, 17 for a count."""
    if argument.axis is None:
        return 0 if argument.tensor else 17
    if argument.axis == 1:
        return 1
    return plan.layer.out_features[argument.site] if argument.tensor == "dy" else plan.layer.in_features


def _run(job: dict[str, Any], target: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", compile_offline.__file__]
    done = subprocess.run(command, input=json.dumps(job), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise KernelError(
            f"Triton could not compile for {target}: {said[-1] if said else f'exit status {done.returncode}'}; "
            "try another target, rank or dtype, or report it with the text of the kernel"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _tool(name: str) -> str:
    spec = find_spec("triton")
    assert spec is not None
    path = Path(spec.origin or "").parent / "backends/nvidia/bin" / name
    chosen = os.environ.get(f"TRITON_{name.upper()}_PATH")
    if not (chosen or path.is_file()):
        raise KernelError(f"{name} is not at {path}, where triton's wheels carry it; set TRITON_{name.upper()}_PATH")
    return chosen or str(path)


def _read_cubin(file: Path, shared: int) -> Resources:
    cuobjdump = _tool("cuobjdump")
    environment = {**os.environ, "PATH": f"{Path(_tool('nvdisasm')).parent}{os.pathsep}{os.environ.get('PATH', '')}"}

    def dump(what: str) -> str:
        done = subprocess.run(
            [cuobjdump, what, str(file)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise KernelError(f"cuobjdump {what} failed: {done.stderr.strip()}; reinstall triton")
        return done.stdout

    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("-res-usage")))
    opcodes = Counter(
        re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", dump("-sass"), re.MULTILINE)
    )
    del opcodes["NOP"]
    local = int(usage["STACK"]) + int(usage["LOCAL"])
    return Resources(int(usage["REG"]), local, shared, opcodes.total(), dict(sorted(opcodes.items())))


def _read_amdgcn(file: Path, shared: int) -> Resources:
    text = file.read_text(encoding="utf-8")
    usage = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
    opcodes = Counter(re.findall(r"^\t([sv]_\w+|(?:ds|buffer|global|flat|scratch)_\w+)", text, re.MULTILINE))
    del opcodes["s_nop"]
    local = int(usage["private_segment_fixed_size"])
    return Resources(int(usage["vgpr_count"]), local, shared, opcodes.total(), dict(sorted(opcodes.items())))
