"""The forms in which rows are said to belong to experts: each product is that of the row's own expert."""

import pytest
import torch
from torch.func import vmap

from noble_fx.branches.grouped import Dense, Gathered, Sorted, ends, has_operator, sorted_rows, taken

EXPERTS = torch.tensor([0, 0, 2, 2, 2, 3])
OFFSETS = torch.tensor([2, 2, 5, 6], dtype=torch.int32)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("groups", [Sorted(OFFSETS, EXPERTS), Gathered(EXPERTS)], ids=["sorted", "gathered"])
def test_rows_meet_their_own_matrix_and_vector(groups):
    x, weight, vectors = numbers(6, 5), numbers(4, 3, 5), numbers(4, 5)
    expected = torch.stack([weight[e] @ row for e, row in zip(EXPERTS, x, strict=True)])
    torch.testing.assert_close(groups.product(x, weight), expected)
    torch.testing.assert_close(groups.rows(vectors), vectors[EXPERTS])


def test_gathered_rows_may_be_in_any_order():
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    x, weight = numbers(6, 5), numbers(4, 3, 5)
    mixed = Gathered(EXPERTS[order]).product(x[order], weight)
    torch.testing.assert_close(mixed, Sorted(OFFSETS, EXPERTS).product(x, weight)[order])


def test_dense_has_the_expert_as_an_axis():
    x, weight = numbers(2, 4, 7, 5), numbers(4, 3, 5)
    torch.testing.assert_close(Dense().product(x, weight), torch.einsum("betk,enk->betn", x, weight))
    torch.testing.assert_close(x * Dense().rows(numbers(4, 5)), x * numbers(4, 5)[:, None])


def test_where_rows_end_and_whose_they_are():
    assert torch.equal(ends(EXPERTS, 4), OFFSETS)
    assert torch.equal(ends(EXPERTS, 6), torch.tensor([2, 2, 5, 6, 6, 6], dtype=torch.int32))
    assert torch.equal(ends(EXPERTS[:0], 2), torch.zeros(2, dtype=torch.int32))
    assert torch.equal(sorted_rows(OFFSETS, 6).experts, EXPERTS)
    exported = torch.export.export(Ends(), (EXPERTS,)).module()
    assert torch.equal(exported(EXPERTS), OFFSETS)


class Ends(torch.nn.Module):
    def forward(self, experts: torch.Tensor) -> torch.Tensor:
        return ends(experts, 4)


def test_the_operator_is_for_plain_tensors_outside_of_transforms():
    class Own(torch.Tensor):
        pass

    assert has_operator(EXPERTS)
    assert not has_operator(EXPERTS.as_subclass(Own))
    seen = []
    vmap(lambda x: (seen.append(has_operator(EXPERTS)), x)[1])(numbers(2))
    assert seen == [False]


def test_what_is_taken_has_the_gradient_of_an_index():
    x = numbers(4, 3).requires_grad_()
    taken(x, EXPERTS).sum().backward()
    assert torch.equal(x.grad[:, 0], torch.tensor([2.0, 0, 3, 1], dtype=torch.float64))
