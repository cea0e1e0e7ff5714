"""Bias and U fitted again beside a new weight: exact, and the best that there are."""

import pytest
import torch

from noble_fx.compressing.problem import Problem, best_outputs
from noble_fx.compressing.residual import residual
from noble_fx.compressing.target import Terms, corrected, refitted, variation
from tests.compressing.data import matrix, skewed

N, K, R, ROWS = 7, 9, 4, 500


def layer(free: int = R) -> tuple[Terms, torch.Tensor, torch.Tensor]:
    x = skewed(ROWS, K)
    t = torch.cos(x @ matrix(free, K, seed=3).T)
    return Terms(matrix(N, K), matrix(N, free, seed=5), matrix(N, 1, seed=6)[:, 0]), x, t


def features(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, t, torch.ones(len(x), 1, dtype=torch.float64)], 1)


def loss(terms: Terms, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (features(x, t) @ terms.whole.T - y).square().sum()


def compressed(terms: Terms, x, t, rank: int, centred: bool = True) -> tuple[Terms, torch.Tensor]:
    v = features(x, t)
    rest = residual(v.T @ v, t.shape[1], centred)
    factors = best_outputs(Problem(terms.weight, inputs=rest.rest))
    low = torch.matmul(*factors.at(rank))
    up, bias = refitted(terms, lambda m: (terms.weight - low) @ m, rest.fit, centred)
    return Terms(low, up, bias), factors.losses[rank]


@pytest.mark.parametrize("free", [0, R])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rank", [0, 2, 5, 7])
def test_the_error_with_both_refitted_is_the_tail(free, centred, rank):
    terms, x, t = layer(free)
    y = features(x, t) @ terms.whole.T
    new, tail = compressed(terms, x, t, rank, centred)
    torch.testing.assert_close(loss(new, x, t, y), tail, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 4])
def test_jointly_optimal(rank):
    """Alternating exact least squares over Ŵ of the rank and all of U, b, from many starts, finds nothing better."""
    terms, x, t = layer()
    y, v = features(x, t) @ terms.whole.T, features(x, t)
    new, tail = compressed(terms, x, t, rank)
    best = loss(new, x, t, y)
    for seed in range(5):
        down = matrix(rank, K, seed=seed + 20)
        for _ in range(300):
            wide = torch.cat([x @ down.T, v[:, K:]], 1)
            fit = torch.linalg.lstsq(wide, y).solution.T
            up = fit[:, :rank]
            rest = y - v[:, K:] @ fit[:, rank:].T
            down = torch.linalg.lstsq(x, rest @ up @ torch.linalg.inv(up.T @ up)).solution.T
        assert loss(Terms(up @ down, fit[:, rank:-1], fit[:, -1]), x, t, y) >= best * (1 - 1e-9)
    torch.testing.assert_close(best, tail, rtol=1e-9, atol=1e-9)


def test_refitting_beats_keeping_the_branch():
    terms, x, t = layer()
    y = features(x, t) @ terms.whole.T
    new, _ = compressed(terms, x, t, 3)
    kept = Terms(new.weight, terms.up, terms.bias)
    assert loss(new, x, t, y) < loss(kept, x, t, y)


def test_in_outputs_it_is_the_same():
    """Sums of [W x | t | 1] know enough: nothing of x itself is needed."""
    terms, x, t = layer()
    v = features(x @ terms.weight.T, t)
    rest = residual(v.T @ v, R, True)
    factors = best_outputs(Problem(terms.weight, outputs=rest.rest))
    up, down = factors.at(3)
    refit, bias = refitted(terms, lambda m: m - up @ (up.T @ m), rest.fit, True)
    expected, _ = compressed(terms, x, t, 3)
    torch.testing.assert_close(Terms(up @ down, refit, bias).whole, expected.whole, rtol=1e-7, atol=1e-7)


def test_variation():
    terms, x, t = layer()
    y = features(x, t) @ terms.whole.T
    expected = (y - y.mean(0)).square().sum()
    for first, of_outputs in ((x, False), (x @ terms.weight.T, True)):
        v = features(first, t)
        assert variation(terms, residual(v.T @ v, R, True), of_outputs) == pytest.approx(float(expected))


@pytest.mark.parametrize("free", [0, R])
@pytest.mark.parametrize("centred", [True, False])
def test_the_correction_is_the_least_squares_fit_of_the_target(free, centred):
    terms, x, t = layer(free)
    seen = x + 0.3 * skewed(ROWS, K, seed=9)  # what a compressed model would give the layer
    seen_t = torch.cos(seen @ matrix(free, K, seed=3).T)
    v, aimed = features(seen, seen_t), features(0.5 * x + 0.5 * seen, 0.5 * t + 0.5 * seen_t)
    found = corrected(terms, v.T @ v, aimed.T @ v, centred)
    y = aimed @ terms.whole.T
    if centred:
        fit = torch.linalg.lstsq(v, y).solution.T
        torch.testing.assert_close(found.whole, fit, rtol=1e-3, atol=1e-3)
    else:
        fit = torch.linalg.lstsq(v[:, :-1], y - terms.bias).solution.T
        torch.testing.assert_close(found.whole[:, :-1], fit, rtol=1e-3, atol=1e-3)
        assert torch.equal(found.bias, terms.bias)


def test_without_a_difference_nothing_is_corrected():
    terms, x, t = layer()
    v = features(x, t)
    torch.testing.assert_close(corrected(terms, v.T @ v, v.T @ v, True).whole, terms.whole)


def test_a_correction_by_inputs_that_say_nothing_keeps_the_weight():
    terms, x, t = layer()
    x = x * (torch.arange(K) < 4)
    v = features(x, t)
    aimed = features(x * 1.1, t)
    found = corrected(terms, v.T @ v, aimed.T @ v, True)
    torch.testing.assert_close(found.weight[:, 4:], terms.weight[:, 4:])
    torch.testing.assert_close(found.weight[:, :4], 1.1 * terms.weight[:, :4], rtol=1e-3, atol=1e-3)
