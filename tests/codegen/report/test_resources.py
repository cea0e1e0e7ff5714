"""What the compiler reports, for GPUs that are not there."""

from dataclasses import replace

import pytest
import torch

import noble_fx
from benchmarks.kernels import broken_promises
from noble_fx.codegen.kernels.forward import linear_up_forward
from noble_fx.codegen.plan import SHARED_BYTES, Layer, make_plan
from noble_fx.codegen.report import resources
from noble_fx.codegen.report.resources import compile_kernels
from noble_fx.errors import KernelError
from tests.samples import long

pytest.importorskip("triton")

LAYER = Layer(1024, (1024,), 16, "identity-0123", torch.bfloat16, torch.bfloat16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))


@pytest.mark.parametrize(("target", "tensor_core"), [long("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("gfx942", "v_mfma")])
def test_the_product_compiles_for_every_target(target, tensor_core):
    plan = make_plan(LAYER, resources.backend_of(target))
    compiled = compile_kernels(plan, [linear_up_forward(plan)], target)["linear_up_forward"]
    assert compiled.count(tensor_core) > 0
    assert compiled.local_bytes == 0
    assert 32 < compiled.registers < 256
    assert compiled.shared_bytes > 0
    assert compiled.instructions == sum(compiled.opcodes.values()) > 200


def test_an_unknown_target_names_the_known_ones():
    plan = make_plan(LAYER)
    known = "sm_80, sm_90, sm_100, sm_120, gfx942, gfx950"
    with pytest.raises(KernelError, match=rf"target='sm_91' is unknown; nearest: 'sm_90'.*{known}"):
        compile_kernels(plan, [linear_up_forward(plan)], "sm_91")


def test_what_the_compiler_refuses_is_an_error_with_its_words():
    plan = make_plan(LAYER)
    kernel = linear_up_forward(plan)
    broken = replace(kernel, source=kernel.source.replace("tl.dot", "tl.dotty"))
    with pytest.raises(KernelError, match=r"could not compile for sm_90.*dotty"):
        compile_kernels(plan, [broken], "sm_90")


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    with pytest.raises(KernelError, match="TRITON_CUFOO_PATH"):
        resources._tool("cufoo")


def test_what_cosnet_must_reach_on_an_h100():
    """K = N = 4096, rank 64, bfloat16: nothing spills, tensor cores and the hardware's cosine, y stored once."""
    kernel_set = noble_fx.kernels("cosnet", in_features=4096, out_features=4096, rank=64)
    compiled = kernel_set.compile("sm_90")
    assert compiled.keys() == kernel_set.kernels.keys()
    assert broken_promises(kernel_set, compiled, "sm_90") == []
    assert compiled["bottleneck_forward"].count("MUFU.COS") > 0
    assert compiled["linear_up_forward"].count("HGMMA") > 0


def test_broken_promises_are_seen():
    kernel_set = noble_fx.kernels("cosnet", in_features=64, out_features=64, rank=64)
    bad = resources.Resources(255, 8, 300_000, 4000, {"FFMA": 4000})
    broken = broken_promises(kernel_set, {"bottleneck_backward": bad}, "sm_90")
    assert [line.split(": ")[1].split(",")[0] for line in broken] == [
        "300000 bytes of shared memory",
        "no HGMMA",
        "8 bytes of local memory",
        "4000 instructions",
        "no MUFU.COS",
    ]


@pytest.mark.parametrize(
    ("target", "kernel", "settings"),
    [
        ("sm_80", "bottleneck_backward", {"act": "swiglu", "rank": 12, "dtype": torch.float16, "preset": "reference"}),
        long("sm_90", "bottleneck_backward", {"act": "gelu_net", "rank": 20, "dtype": torch.float32}),
        ("sm_90", "branch_weight_backward", {"rank": 17, "out_features": (96, 32)}),
        long("gfx942", "bottleneck_forward", {"rank": 64}),
    ],
)
def test_a_sample_of_layers_compiles(target, kernel, settings):
    kernel_set = noble_fx.kernels(**{"in_features": 200, "out_features": 136, **settings}).only(kernel)
    compiled = kernel_set.compile(target)[kernel]
    assert compiled.shared_bytes <= SHARED_BYTES[target]
    assert compiled.local_bytes == 0
