import pytest
import torch
from torch import nn

from noble_fx.training.changing.optimizer_groups import changed_groups
from noble_fx.training.changing.parameter_changes import Change


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2))


def group(name: str, scale: float, *parameters: nn.Parameter, **more) -> dict:
    return {"name": name, "params": list(parameters), "lr": 0.1 * scale, "lr_scale": scale, "eps": 1.0, **more}


def test_one_of_another_rate_goes_to_a_group_of_its_own_and_finds_it_again():
    a, b, c, base = (parameter() for _ in range(4))
    new_a, new_b = parameter(), parameter()
    groups = [group("base", 1.0, base), group("n.up ×2", 2.0, a, b, c, initial_lr=0.4)]
    order = {id(p): at for at, p in enumerate((new_a, new_b, c))}
    changes = [Change("a", a, new_a, 0.5), Change("b", b, new_b, 0.5)]
    made = changed_groups(groups, changes, order)
    assert [g["name"] for g in made] == ["base", "n.up ×1", "n.up ×2"]
    assert made[1]["params"] == [new_a, new_b]
    assert made[1]["lr"] == pytest.approx(0.1)
    assert made[1]["initial_lr"] == pytest.approx(0.2)
    assert made[2]["params"] == [c]
    assert groups[1]["params"] == [a, b, c]
    back = changed_groups(made, [Change("a", new_a, a, 2.0)], {id(a): 0, id(new_b): 1, id(c): 2})
    assert [(g["name"], g["params"]) for g in back[1:]] == [("n.up ×2", [a, c]), ("n.up ×1", [new_b])]


def test_empty_groups_go_and_groups_without_a_scale_keep_all():
    a, new = parameter(), parameter()
    (made,) = changed_groups([{"params": [a], "lr": 0.1}], [Change("a", a, new, 0.5)], {id(new): 0})
    assert made == {"params": [new], "lr": 0.1}
    assert changed_groups([group("n.up", 1.0, a)], [Change("a", a, None)], {}) == []


def test_settings_that_differ_are_not_joined_and_a_rate_in_a_tensor_stays_one():
    a, b, new = parameter(), parameter(), parameter()
    groups = [group("n.up ×2", 2.0, a), group("n.up ×1", 1.0, b)]
    groups[1]["eps"] = 2.0
    groups[0]["lr"] = torch.tensor(0.2)
    made = changed_groups(groups, [Change("a", a, new, 0.5)], {id(new): 0, id(b): 1})
    assert [g["params"] for g in made] == [[new], [b]]
    assert isinstance(made[0]["lr"], torch.Tensor)
    assert float(made[0]["lr"]) == pytest.approx(0.1)


def test_one_that_comes_joins_the_group_of_its_kind():
    a, new = parameter(), parameter()
    change = Change("x", a, new, 1.0, added=True)
    (made,) = changed_groups([group("n.down ×1", 1.0, a)], [change], {id(new): 0, id(a): 1})
    assert made["params"] == [new, a]
