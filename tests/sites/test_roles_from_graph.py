"""What a linear map does, from where its result goes."""

import torch
from torch import nn

import noble_fx


class Unnamed(nn.Module):
    """Names that say nothing: attention by matmul and softmax, then a gated FFN."""

    def __init__(self):
        super().__init__()
        self.a1, self.a2, self.a3, self.a4 = (nn.Linear(16, 16) for _ in range(4))
        self.b1, self.b2, self.b3 = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = (self.a1(x) @ self.a2(x).transpose(-1, -2)) * 0.25
        x = x + self.a4(scores.softmax(dim=-1) @ self.a3(x))
        return x + self.b3(nn.functional.silu(self.b1(x)) * self.b2(x))


def test_roles_from_dataflow_where_names_are_silent():
    found = {site.fqn: site.role for site in noble_fx.sites(Unnamed(), rank=4)}
    assert found == {
        "a1": "attention.q",
        "a2": "attention.k",
        "a3": "attention.v",
        "a4": "attention.out",
        "b1": "ffn.gate",
        "b2": "ffn.in",
        "b3": "ffn.out",
    }


def test_roles_from_dataflow_through_fused_attention():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 48), nn.Linear(16, 16)
            self.c, self.d = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.a(x).chunk(3, dim=-1)
            x = x + self.b(nn.functional.scaled_dot_product_attention(q, k, v))
            return x + self.d(nn.functional.gelu(self.c(x)))

    found = {site.fqn: site.role for site in noble_fx.sites(Fused(), rank=4)}
    assert found == {"a": "attention.qkv", "b": "attention.out", "c": "ffn.in", "d": "ffn.out"}
