"""PELA's stage: each linear as two thin ones from its SVD, taught by the original's features and kept near its weights.

python examples/neighbours/pela.py
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def factorised(model: nn.Module, share: float = 0.5) -> nn.Module:
    """A copy whose `nn.Linear`s are x -> (x Bᵀ) Aᵀ + b, with `share` of their weights: k = share · NK / (N + K)."""
    student = copy.deepcopy(model)
    for name, layer in list(student.named_modules()):
        rank = int(share * layer.weight.numel() / sum(layer.weight.shape)) if isinstance(layer, nn.Linear) else 0
        if rank:
            student.set_submodule(name, thin(layer, rank))
    return student


def thin(layer: nn.Linear, rank: int) -> nn.Sequential:
    """[N, K] -> B [k, K] and A [N, k], √S on either side."""
    u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    root = s[:rank].sqrt()
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(root[:, None] * v[:rank])
        second.weight.copy_(u[:, :rank] * root)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second)


def features(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """A dictionary that every call of the model fills with what the layers called `names` gave."""
    found: dict[str, Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
    return found


def bound(student: nn.Module, teacher: nn.Module, names: list[str], epsilon: float = 1e-3) -> Tensor:
    """The mean over layers of (max |A B − W| − ε)²: no weight is to be further than about ε from the original's."""
    products = [student.get_parameter(f"{n}.1.weight") @ student.get_parameter(f"{n}.0.weight") for n in names]
    originals = [teacher.get_parameter(f"{name}.weight").detach() for name in names]
    gaps = [(product - weight).abs().max() for product, weight in zip(products, originals, strict=True)]
    return torch.stack([(gap - epsilon) ** 2 for gap in gaps]).mean()


def main() -> None:
    """Features of the student come nearer to the teacher's; a task's own loss would be added to these."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).requires_grad_(False)
    student = factorised(teacher).requires_grad_(True)
    names = [name for name, layer in teacher.named_modules() if isinstance(layer, nn.Linear)]
    theirs, own = features(teacher, names), features(student, names)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for step in range(201):
        x = torch.randn(64, 64) * torch.linspace(1, 0, 64)  # of which the SVD of W knows nothing
        teacher(x), student(x)
        distance = torch.stack([F.mse_loss(own[name], theirs[name]) for name in names]).mean()
        optimizer.zero_grad()
        (distance + bound(student, teacher, names)).backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"after {step} steps the features differ by {distance:.4f}")


if __name__ == "__main__":
    main()
