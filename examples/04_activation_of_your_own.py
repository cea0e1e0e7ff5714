"""A σ of your own: any module on [.., r] that treats rows one by one. It is differentiated and fused like the others.

python examples/04_activation_of_your_own.py
"""

import torch

import noble_fx


class Wavelet(torch.nn.Module):
    """sin(h) exp(−w h²), a width w for each channel."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.width = torch.nn.Parameter(torch.ones(rank))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """[.., r] -> [.., r]."""
        return torch.sin(h) * torch.exp(-self.width * h * h)


noble_fx.register_activation("wavelet", Wavelet)  # with a name it can be saved and loaded
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
model = noble_fx.transform(model, rank=8, act="wavelet", seed=0)
print(noble_fx.explain(model))

model(torch.randn(4, 64)).sum().backward()
assert model[0].noble.act.width.grad is not None

# The Triton kernel that a GPU runs has it inside.
kernels = noble_fx.kernels("wavelet", in_features=64, out_features=64, rank=8)
source = kernels.sources["bottleneck_forward"]
print(source[source.index("def bottleneck_forward") :])
