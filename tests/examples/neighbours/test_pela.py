"""PELA's stage: ranks, the penalty, and features that come nearer."""

import re

import pytest
import torch
from torch import nn

import noble_fx
from examples.neighbours.pela import bound, factorised, features, main, thin


def rank_of(student: nn.Module, name: str) -> int:
    return student.get_submodule(name)[0].out_features


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (33, 7)])
def test_a_layer_has_its_share_of_weights_and_no_more(shape, share):
    layer = nn.Linear(*shape)
    student = factorised(nn.Sequential(layer), share)
    weights = sum(p.numel() for p in student.parameters() if p.ndim == 2)
    assert share * layer.weight.numel() - sum(shape) < weights <= share * layer.weight.numel()


def test_a_layer_too_small_for_any_rank_stays():
    assert type(factorised(nn.Sequential(nn.Linear(2, 2)), 0.5)[0]) is nn.Linear


@pytest.mark.parametrize("bias", [True, False])
def test_at_full_rank_it_is_the_layer_and_below_the_best_of_its_rank(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 8, bias=bias).double(), torch.randn(5, 12).double()
    torch.testing.assert_close(thin(layer, 8).double()(x), layer(x), rtol=0, atol=1e-6)
    b, a = thin(layer, 3)
    tail = torch.linalg.svdvals(layer.weight)[3:].square().sum().sqrt()
    gap = torch.linalg.norm(a.weight.double() @ b.weight.double() - layer.weight)
    torch.testing.assert_close(gap, tail, rtol=1e-6, atol=0)
    torch.testing.assert_close(a.weight.square().sum(0), b.weight.square().sum(1))  # √S on either side


def test_the_penalty_is_of_the_largest_gap_and_has_no_gradient_at_epsilon():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 8))
    student = factorised(teacher)
    gap = (student[0][1].weight @ student[0][0].weight - teacher[0].weight).abs().max().item()
    assert bound(student, teacher, ["0"], epsilon=0.01).item() == pytest.approx((gap - 0.01) ** 2, rel=1e-5)
    for epsilon, still in ((gap, True), (gap / 2, False)):
        student.zero_grad()
        bound(student, teacher, ["0"], epsilon).backward()
        assert (student[0][0].weight.grad.abs().max().item() < 1e-6) == still
    assert teacher[0].weight.grad is None


def test_features_are_those_of_the_last_call_of_either():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    student = factorised(model)
    found, own = features(model, ["0", "2"]), features(student, ["0", "2"])
    for _ in range(2):
        x = torch.randn(3, 4)
        assert torch.equal(model(x), found["2"])
        assert torch.equal(student(x), own["2"])
        assert torch.equal(found["0"], model[0](x))


def test_a_student_gets_branches_like_any_other_model():
    student = noble_fx.transform(factorised(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))), rank=4)
    assert [site.fqn for site in noble_fx.sites(student) if site.selected] == ["0.0", "0.1", "2.0", "2.1"]
    assert student(torch.randn(2, 64)).shape == (2, 64)


def test_features_come_nearer(capsys):
    main()
    distances = [float(text) for text in re.findall(r"by (\S+)", capsys.readouterr().out)]
    assert len(distances) == 5
    assert distances[-1] < 0.8 * distances[0]
