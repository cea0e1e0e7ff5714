"""A script of its own, run by `resources.py` in a child process: Triton kernels to machine code, with no GPU.

Triton decides when it is imported whether kernels are compiled or interpreted, so a process under the interpreter
cannot compile; a child can. It imports nothing of this project. A job arrives as JSON on the standard input:

    {"backend": "cuda", "arch": 90, "warp_size": 32, "folder": "…",
     "kernels": [{"name", "path", "signature", "constants", "attributes", "options"}, …]}

For each kernel the binary (`.cubin`) or the assembly (`.amdgcn`) is written into the folder; what else the parent
needs to know is printed as one line of JSON.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Compile every kernel of the job."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    job = json.load(sys.stdin)
    target = GPUTarget(job["backend"], job["arch"], job["warp_size"])
    form = "cubin" if job["backend"] == "cuda" else "amdgcn"
    binaries: dict[str, Any] = {}
    for kernel in job["kernels"]:
        source = ASTSource(
            fn=_function(kernel["path"], kernel["name"]),
            signature=kernel["signature"],
            constexprs={(int(index),): value for index, value in kernel["constants"].items()},
            attrs={(int(index),): value for index, value in kernel["attributes"].items()},
        )
        compiled = triton.compile(source, target=target, options=kernel["options"])
        binary = compiled.asm[form]
        file = Path(job["folder"], f"{kernel['name']}.{form}")
        file.write_bytes(binary if isinstance(binary, bytes) else binary.encode("utf-8"))
        binaries[kernel["name"]] = {"file": str(file), "shared": compiled.metadata.shared}
    print(json.dumps(binaries))


def _function(path: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"kernel_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


if __name__ == "__main__":
    main()
