"""The forward kernels: bottleneck_forward (x → h, t) and linear_up_forward (y = x Wᵀ + b + t Uᵀ)."""

from __future__ import annotations

from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import Plan
from noble_fx.codegen.product import Out, Term, product


def linear_up_forward(plan: Plan) -> Kernel:
    """y = x Wᵀ + b + t Uᵀ in one accumulation, for every site in one launch."""
    layer = plan.layer

    def out(site: int) -> Out:
        weight, up, t = (layer.name(tensor, site) for tensor in ("weight", "up", "t"))
        main = Term("x", weight, layer.in_features, transposed=True, strided=True)
        small = Term(t, up, layer.rank, transposed=True, strided=False)
        bias = layer.name("bias", site) if layer.bias else ""
        return Out(layer.name("y", site), layer.out_features[site], (main, small), bias)

    outs = tuple(out(site) for site in range(layer.sites))
    title = "y = x Wᵀ + b + t Uᵀ" if layer.bias else "y = x Wᵀ + t Uᵀ"
    return product(plan, plan.linear_up_forward, "linear_up_forward", title, outs)
