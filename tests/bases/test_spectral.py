"""W by its singular values and vectors."""

import torch

from noble_fx.bases.spectral import Spectral


def made(rank=12):
    base = Spectral(12, 20, rank).double()
    base.fill(torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    return base


def test_the_gradient_of_s_is_the_diagonal_of_the_dense_one_between_its_vectors():
    base = made()
    x, dy = torch.randn(7, 12, dtype=torch.float64), torch.randn(7, 20, dtype=torch.float64)
    base(x).backward(dy)
    torch.testing.assert_close(base.spectrum.grad, torch.diag(base.up.t() @ (dy.t() @ x) @ base.down.t()))


def test_after_some_steps_it_can_be_made_orthonormal_again_without_a_change():
    base = made(5)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    before, parts = base.merged().detach().clone(), list(base.parameters())
    base.respectralize()
    torch.testing.assert_close(base.merged(), before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(base.up.t() @ base.up, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(base.down @ base.down.t(), torch.eye(5, dtype=torch.float64))
    assert torch.equal(base.spectrum, base.spectrum.sort(descending=True).values)
    assert all(mine is then for mine, then in zip(base.parameters(), parts, strict=True))


def test_between_steps_s_is_kept_above_zero():
    base = made(3)
    with torch.no_grad():
        base.spectrum.copy_(torch.tensor([2.0, -1.0, 0.5]))
    base.between_steps(0.3)
    assert base.spectrum.tolist() == [2.0, 0.0, 0.5]


def test_cut_it_keeps_the_largest_s_wherever_they_stand():
    base = made(3)
    with torch.no_grad():
        base.spectrum.copy_(torch.tensor([0.1, 3.0, 2.0]))
    cut = base.truncated(2)
    assert cut.spectrum.tolist() == [3.0, 2.0]
    expected = base.merged() - 0.1 * torch.outer(base.up[:, 0], base.down[0])
    torch.testing.assert_close(cut.merged(), expected)
