"""What Inductor makes of a graph with generated kernels: calls of them and of the vendor's products, nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.runtime.call import Call
from noble_fx.runtime.layer_kernels import LayerKernels, layer_kernels
from noble_fx.runtime.traced_call import trace_call
from tests.fused_layer import layer_of

pytest.importorskip("triton")


def test_without_launches_a_call_is_its_products():
    """A call of PyTorch's operators alone runs as it is traced."""
    kernels = layer_kernels(
        Layer(6, (5,), 4, layer_of("gelu").noble.key, torch.float32, torch.float32), "cuda", 1 << 17, False
    )
    assert isinstance(kernels, LayerKernels)
    assert make_plan(kernels.layer, "cuda", False, 1 << 17) == kernels.plan
    needs = dict.fromkeys(["x", "weight", "bias", "down", "down_bias", "up"], False) | {"weight": True, "bias": True}
    operands = {"dy": torch.randn(3, 5), "x": torch.randn(3, 6), "h": torch.randn(3, 4)}
    call = kernels.backward(operands, needs, ("vendor", "vendor"))
    assert isinstance(call, Call)
    weight, bias = trace_call(kernels.plan, call, operands, {"bias": (1, 5)})
    torch.testing.assert_close(weight, operands["dy"].t() @ operands["x"])
    torch.testing.assert_close(bias, operands["dy"].sum(0)[None])


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> str:
    """Inductor's code for a forward and a backward on an H100, written in a process where Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "NOBLE_FX_CACHE": str(tmp_path_factory.mktemp("kernels")),
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    program = Path(__file__).parents[1] / "inductor_for_a_gpu.py"
    run = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def calls(code: str) -> list[str]:
    """The bodies of the generated `call` functions, line by line."""
    inside = False
    lines = []
    for line in code.splitlines():
        inside = line.strip().startswith("def call(") or (inside and not line.strip().startswith("return ("))
        if inside:
            lines.append(line.strip())
    return lines


def test_inductor_starts_the_kernels_itself(code):
    started = [line.split("(")[0] for line in calls(code) if ".run(" in line]
    names = [name.rsplit(".", 1)[0].rstrip("0123456789").rstrip("_") for name in started]
    assert [name for name in names if not name.startswith("triton_")] == [
        "bottleneck_forward",
        "linear_up_forward",
        "bottleneck_backward",
        "reduce_partials",
        "linear_backward_input",
        "branch_weight_backward",
        "reduce_branch_weights",
    ]


def test_nothing_of_this_package_runs_between_them(code):
    assert not [line for line in calls(code) if "noble_fx" in line or "torch.ops" in line]


def test_no_operand_is_copied(code):
    """What kernels write are buffers of Inductor's own: it found out what they write, and copies nothing before."""
    assert not [line for line in calls(code) if "copy_(" in line or "clone(" in line]
    assert sum("empty_strided_cuda" in line for line in calls(code)) > 10


def test_torch_knows_what_kernels_write(code):
    """By Triton's own form of each kernel; what it does not understand it would take to be written, all of it."""
    told = [line for line in code.splitlines() if line.startswith("writes ")]
    assert len(told) == 7
    for line in told:
        _, name, found, declared = line.split()
        assert found == declared, name
