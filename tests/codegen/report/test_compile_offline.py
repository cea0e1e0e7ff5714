"""The script of the child process: a job on its standard input, binaries and a line of JSON out."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from noble_fx.codegen.report import compile_offline

pytest.importorskip("triton")

KERNEL = """
import triton
import triton.language as tl


@triton.jit
def double(x_ptr, rows):
    row = tl.arange(0, 64)
    tl.store(x_ptr + row, 2.0 * tl.load(x_ptr + row, mask=row < rows), mask=row < rows)
"""


def compiled(tmp_path: Path, kernel: str = KERNEL) -> subprocess.CompletedProcess:
    source = tmp_path / "double.py"
    source.write_text(kernel)
    job = {
        "backend": "cuda",
        "arch": 90,
        "warp_size": 32,
        "folder": str(tmp_path),
        "kernels": [
            {
                "name": "double",
                "path": str(source),
                "signature": {"x_ptr": "*fp32", "rows": "i32"},
                "constants": {},
                "attributes": {},
                "options": {"num_warps": 1},
            }
        ],
    }
    command = [sys.executable, "-P", compile_offline.__file__]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    return subprocess.run(command, input=json.dumps(job), env=environment, capture_output=True, text=True, check=False)


def test_a_kernel_becomes_a_file_without_a_gpu(tmp_path):
    done = compiled(tmp_path)
    assert done.returncode == 0, done.stderr
    ((name, binary),) = json.loads(done.stdout.splitlines()[-1]).items()
    assert name == "double"
    assert Path(binary["file"]).read_bytes().startswith(b"\x7fELF")
    assert binary["shared"] == 0


def test_what_cannot_be_compiled_fails_with_the_compilers_words(tmp_path):
    done = compiled(tmp_path, KERNEL.replace("tl.arange(0, 64)", "tl.arange(0, 65)"))
    assert done.returncode != 0
    assert "power of 2" in done.stderr


def test_it_imports_nothing_of_this_project():
    tree = ast.parse(Path(compile_offline.__file__).read_text(encoding="utf-8"))
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not any(module.startswith("noble_fx") for module in modules)
