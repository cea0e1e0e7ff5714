"""The maths of where a branch starts, in float64."""

import pytest
import torch

from noble_fx.training.initial.methods import METHODS

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = [(9, 12), (12, 9), (10, 10)]


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(values):
    between = values.between if values.between.ndim == 2 else torch.diag(values.between)
    return values.up @ between @ values.down


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("name", METHODS)
def test_shapes_and_what_it_adds(name, shape, rank):
    method, matrix = METHODS[name], drawn(shape)
    values = method.values(matrix, rank)
    assert values.down.shape == (rank, shape[1])
    assert values.up.shape == (shape[0], rank)
    assert (values.between is None) == (method.between == "")
    added = values.up @ values.down if values.between is None else product(values)
    assert (added.count_nonzero() == 0) == method.keeps


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_factors_are_orthonormal_so_a_step_of_the_core_needs_no_inverse(shape):
    """U gM D = P_U G P_D."""
    values, g = METHODS["orthonormal"].values(drawn(shape), 4), drawn(shape, 1)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(values.down @ values.down.T, eye, **EXACT)
    torch.testing.assert_close(values.up.T @ values.up, eye, **EXACT)
    gradient = values.up.T @ g @ values.down.T
    p_up, p_down = values.up @ values.up.T, values.down.T @ values.down
    torch.testing.assert_close(values.up @ gradient @ values.down, p_up @ g @ p_down, **EXACT)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gradient_starts_at_the_nearest_matrix_of_its_rank(shape):
    matrix = drawn(shape)
    added = product(METHODS["gradient"].values(matrix, 3))
    best = torch.linalg.svdvals(matrix)[3:].square().sum().sqrt()
    torch.testing.assert_close((matrix - added).norm(), best, **EXACT)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_takes_the_directions_in_which_w_is_largest(shape):
    matrix = drawn(shape)
    down = METHODS["svd"].values(matrix, 3).down
    torch.testing.assert_close((matrix @ down.T).norm(dim=0), torch.linalg.svdvals(matrix)[:3], **EXACT)


@pytest.mark.parametrize("rank", [1, 4, 5, 12])
@pytest.mark.parametrize("width", [12, 13])
def test_tiled_is_a_sum_over_chunks(rank, width):
    """x Dᵀ [rank]: the sum of x's chunks of `rank` entries, the last one filled up with zeros."""
    x = drawn((6, width))
    down = METHODS["tiled"].values(drawn((9, width)), rank).down
    padded = torch.nn.functional.pad(x, (0, -width % rank))
    assert torch.equal(x @ down.T, padded.unflatten(-1, (-1, rank)).sum(1)) or torch.allclose(
        x @ down.T, padded.unflatten(-1, (-1, rank)).sum(1), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_ldu_is_loldu_written_as_what_its_diagonal_is_beyond_the_pivots(shape):
    """W − P L_r diag(d_r) R_r + P L_r diag(d_r + z) R_r = W + P L_r diag(z) R_r, with R unit upper triangular."""
    matrix, rank = drawn(shape), 4
    order, lower, upper = torch.linalg.lu(matrix)
    pivots = upper.diagonal()
    whole = (order @ lower) @ torch.diag(pivots) @ (upper / pivots[:, None])
    torch.testing.assert_close(whole, matrix, **EXACT)
    left, right, z = (order @ lower)[:, :rank], (upper / pivots[:, None])[:rank], drawn((rank,), 2)
    theirs = matrix - left @ torch.diag(pivots[:rank]) @ right + left @ torch.diag(pivots[:rank] + z) @ right
    values = METHODS["ldu"].values(matrix, rank)
    torch.testing.assert_close(matrix + values.up @ torch.diag(z) @ values.down, theirs, **EXACT)


def test_a_pivot_of_zero_divides_nothing():
    matrix = drawn((6, 2)) @ drawn((2, 5), 1)
    values = METHODS["ldu"].values(torch.zeros(6, 5).double(), 3)
    assert values.down.isfinite().all()
    assert METHODS["ldu"].values(matrix, 4).down.isfinite().all()
