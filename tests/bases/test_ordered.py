"""A product whose parts are ordered: its prefix, its penalty, and what is cut."""

import torch

from noble_fx.bases.low_rank import spectral_factors
from noble_fx.bases.ordered import Ordered


def made(rank=6):
    base = Ordered(12, 20, rank).double()
    base.fill(torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    return base


def test_of_a_prefix_only_the_first_parts_run_and_learn():
    base, x = made(), torch.randn(5, 12, dtype=torch.float64)
    base.between_steps(0.0, prefix=2)
    expected = x @ base.down[:2].t() @ base.up[:, :2].t()
    torch.testing.assert_close(base(x), expected)
    torch.testing.assert_close(base.merged(), base.up[:, :2] @ base.down[:2])
    base(x).sum().backward()
    assert base.up.grad[:, 2:].abs().max() == 0
    assert base.down.grad[2:].abs().max() == 0
    assert base.up.grad[:, :2].abs().min() > 0


def test_in_eval_mode_and_with_its_full_width_all_of_it_runs():
    base, x = made(), torch.randn(5, 12, dtype=torch.float64)
    full = base(x)
    base.between_steps(0.0, prefix=1)
    assert not torch.allclose(base(x), full)
    torch.testing.assert_close(base.eval()(x), full)
    base.train().between_steps(0.5)
    torch.testing.assert_close(base(x), full)


def test_its_penalty_is_the_sum_of_the_norms_of_all_tails():
    base = made()
    expected = sum(base.up[:, j:].norm() + base.down[j:].norm() for j in range(6))
    torch.testing.assert_close(base.lasso(), expected)
    own = torch.autograd.grad(base.lasso(), [base.up, base.down])
    for mine, theirs in zip(own, torch.autograd.grad(expected, [base.up, base.down]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_where_a_tail_is_zero_its_gradient_is_zero_and_no_nan():
    base = made()
    with torch.no_grad():
        base.up[:, 4:], base.down[4:] = 0, 0
    base.lasso().backward()
    assert base.up.grad.isfinite().all()
    assert base.up.grad[:, 4:].abs().max() == 0
    assert base.importances()[4:].tolist() == [0.0, 0.0]


def test_under_the_penalty_the_last_parts_go_first():
    base = made()
    optimizer = torch.optim.SGD(base.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        base.lasso().backward()
        optimizer.step()
    first, last = base.importances()[0], base.importances()[-1]
    assert last < 0.05 * first


def test_trained_with_ordered_dropout_its_parts_are_those_of_the_svd():
    """A linear map with inputs that are alike in all directions: Maestro's own case."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator)).Q for _ in range(2))
    weight = u @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5, 0, 0, 0, 0], dtype=torch.float64)) @ v
    base = Ordered(8, 8, 4).double()
    with torch.no_grad():
        base.up.copy_(torch.randn(8, 4, dtype=torch.float64, generator=generator) * 0.3)
        base.down.copy_(torch.randn(4, 8, dtype=torch.float64, generator=generator) * 0.3)
    base.draw()
    optimizer = torch.optim.Adam(base.parameters(), lr=0.02)
    for step in range(3000):
        base.between_steps(0.0, prefix=1 + step % 4)
        optimizer.zero_grad()
        (base.merged() - weight).square().sum().backward()
        optimizer.step()
    base.eval()
    for rank in (1, 2, 3):
        up, down = spectral_factors(weight, rank)
        assert (base.truncated(rank).merged() - up @ down).norm() < 0.15
