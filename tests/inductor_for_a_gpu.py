"""Writes Inductor's code for a fused layer on an H100, without one: what `runtime/test_traced_call.py` reads.

A program of its own, since Triton must not interpret here. The graphs are traced on the CPU as for a GPU, then put on a
fake one: autograd of a CPU build knows no other device.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from functorch.compile import make_boxed_func
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops import triton_kernel_wrap
from torch._inductor import compile_fx, scheduler
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from triton.backends.compiler import GPUTarget

from noble_fx.codegen.plan import SHARED_BYTES
from noble_fx.ops import available, decompose
from noble_fx.runtime import traced_call
from tests.fused_layer import layer_of

H100: dict[str, Any] = {
    "type": "cuda",
    "index": 0,
    "multi_processor_count": 132,
    "cc": 90,
    "major": 9,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "warp_size": 32,
}


class Written(BaseException):  # which Inductor does not wrap
    """The code is there; nothing can load it here."""


def traced() -> list[tuple[fx.GraphModule, list[Any]]]:
    """The graphs of forward and backward, and their inputs."""
    graphs: list[tuple[fx.GraphModule, list[Any]]] = []

    def keep(graph: fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append((graph, inputs))
        results = [node.meta["val"] for node in graph.graph.output_node().args[0]]
        return make_boxed_func(lambda *_: [torch.zeros(tuple(map(int, r.shape)), dtype=r.dtype) for r in results])

    layer, x = layer_of().bfloat16(), torch.randn(3, 5, 40, dtype=torch.bfloat16, requires_grad=True)
    torch.compile(layer, backend=aot_autograd(fw_compiler=keep, decompositions=select_decomp_table()))(
        x
    ).sum().backward()
    return graphs


def on_a_gpu(graph: fx.GraphModule, inputs: list[Any], mode: FakeTensorMode) -> list[Any]:
    """The graph on a fake GPU; its inputs there."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.update_kwarg("device", torch.device("cuda", 0))
    graph.recompile()
    with mode:
        moved = [torch.empty_strided(i.shape, i.stride(), dtype=i.dtype, device="cuda:0") for i in inputs]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*moved)
    return moved


def tell_of_writes(kernels: dict[str, Any]) -> None:
    """What torch finds that each kernel writes, beside what its generator says."""
    for name, (function, kernel) in kernels.items():
        types = {"*bf16": torch.bfloat16, "*fp32": torch.float32}
        given = {a.name: torch.empty(4, dtype=types[a.type]) if a.type in types else 64 for a in kernel.arguments}
        table = triton_kernel_wrap.kernel_side_table
        places = table.add_kernel(function), table.add_constant_args({})
        found = sorted(triton_kernel_wrap.get_mutated_tensors(*places, given, {}))
        declared = sorted(argument.name for argument in kernel.arguments if argument.written)
        print("writes", name, ",".join(found), ",".join(declared))


def main() -> None:
    """Prints the code of both, then what each kernel writes."""
    kernels: dict[str, Any] = {}
    load = traced_call.load_kernel

    def noted(plan: Any, kernel: Any) -> Any:
        kernels[kernel.name] = load(plan, kernel), kernel
        return load(plan, kernel)

    def written(self: GraphLowering) -> Any:
        code, _ = self.codegen()
        print(getattr(code, "value", code))
        raise Written

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_active_torch_device=lambda: torch.device("cpu")
    )
    triton.runtime.driver.set_active(driver)
    found = SimpleNamespace(
        major=9, minor=0, name="H100", multi_processor_count=132, total_memory=80 << 30, gcnArchName=""
    )
    mode = FakeTensorMode()
    with (
        patch.object(available, "gpu_of", lambda device: available.Gpu("cuda", SHARED_BYTES["sm_90"])),
        patch.object(decompose, "_device", lambda x: "cuda"),
        patch.object(traced_call, "load_kernel", noted),
        patch.object(DeviceProperties, "create", classmethod(lambda cls, device: DeviceProperties(**H100))),
        patch.object(torch.cuda, "get_device_properties", lambda device=None: found),
        patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        patch.object(torch.cuda, "current_device", lambda: 0),
        patch.object(scheduler, "has_triton", lambda *_: True),
        patch.object(compile_fx, "_check_triton_bf16_support", lambda graph: None),
        patch.object(GraphLowering, "compile_to_module", written),
    ):
        for graph, inputs in traced():
            moved = on_a_gpu(graph, inputs, mode)
            try:
                with V.set_fake_mode(mode), mode:
                    compile_fx.compile_fx_inner(graph, moved)
            except Written:
                pass
    tell_of_writes(kernels)


if __name__ == "__main__":
    main()
