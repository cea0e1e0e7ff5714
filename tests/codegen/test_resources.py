"""What the compiler reports, for GPUs that are not there."""

from dataclasses import replace

import pytest
import torch

from noble_fx.codegen import resources
from noble_fx.codegen.forward import linear_up_forward
from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.codegen.resources import compile_kernels
from noble_fx.errors import KernelError

pytest.importorskip("triton")

LAYER = Layer(1024, (1024,), 16, "identity-0123", torch.bfloat16, torch.bfloat16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))


@pytest.mark.parametrize(("target", "tensor_core"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("gfx942", "v_mfma")])
def test_the_product_compiles_for_every_target(target, tensor_core):
    plan = make_plan(LAYER, resources.backend_of(target))
    found = compile_kernels(plan, [linear_up_forward(plan)], target)["linear_up_forward"]
    assert found.count(tensor_core) > 0
    assert found.local_bytes == 0
    assert 32 < found.registers < 256
    assert found.shared_bytes > 0
    assert found.instructions == sum(found.opcodes.values()) > 200


def test_an_unknown_target_names_the_known_ones():
    plan = make_plan(LAYER)
    with pytest.raises(KernelError, match=r"target='sm_91' is unknown; nearest: 'sm_90'.*sm_80, sm_90, gfx942"):
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
