import itertools

import torch

from noble_fx.branches.fewer import refitted, relative_error, survivors


def drawn(rows: int = 200, width: int = 6, outputs: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(width, width, generator=generator, dtype=torch.float64)
    inputs = torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixed
    return inputs, torch.randn(outputs, width, generator=generator, dtype=torch.float64)


def loss(inputs: torch.Tensor, weight: torch.Tensor, kept: list[int]) -> float:
    fitted = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution
    return float((inputs[:, kept] @ fitted - inputs @ weight.T).norm())


def test_one_channel_less_is_the_best_one():
    inputs, weight = drawn()
    kept = survivors(inputs, weight, 5).tolist()
    best = min(loss(inputs, weight, list(each)) for each in itertools.combinations(range(6), 5))
    assert abs(loss(inputs, weight, kept) - best) < 1e-6


def test_channels_that_say_the_same_go_first():
    inputs, weight = drawn()
    inputs[:, 4] = 2 * inputs[:, 1]
    weight[:, 2] = 0
    kept = survivors(inputs, weight, 4)
    assert 2 not in kept
    assert (1 in kept) != (4 in kept)


def test_a_matrix_is_fitted_to_what_the_others_made():
    inputs, weight = drawn()
    kept = survivors(inputs, weight, 3)
    fitted = refitted(weight[:, kept], inputs[:, kept], weight, inputs)
    error = relative_error(fitted, inputs[:, kept], weight, inputs)
    assert abs(error - loss(inputs, weight, kept.tolist()) / float((inputs @ weight.T).norm())) < 1e-6
    assert error < relative_error(weight[:, kept], inputs[:, kept], weight, inputs)


def test_a_few_rows_or_none_that_matter_change_little():
    inputs, weight = drawn(rows=2)
    assert torch.isfinite(refitted(weight[:, :5], inputs[:, :5], weight, inputs)).all()
    zero = torch.zeros_like(inputs)
    assert torch.equal(refitted(weight, zero, weight, zero), weight)
    assert survivors(zero, weight, 2).numel() == 2
    assert relative_error(weight, zero, weight, zero) == 0
