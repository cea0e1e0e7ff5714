"""Mixup is warned of where it can be seen, and nothing else is taken for it."""

import warnings

import pytest
import torch

from noble_fx.training.mixup import warn_of_mixup


class Mixup:
    """As timm's."""


class CutMix(torch.nn.Module):
    """As torchvision's."""


class MyCutMix(CutMix):
    pass


class Compose:
    def __init__(self, *transforms):
        self.transforms = list(transforms)


class Data(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 4


@pytest.mark.parametrize(
    ("used", "name"),
    [
        ((Mixup(),), "Mixup"),
        ((None, Compose(abs, CutMix())), "CutMix"),
        ((Data(Compose(MyCutMix())),), "CutMix"),
        ((torch.utils.data.DataLoader(Data(abs), collate_fn=Mixup()),), "Mixup"),
        ((torch.utils.data.DataLoader(Data(Compose(Mixup()))),), "Mixup"),
    ],
)
def test_it_is_found_where_it_is_held(used, name):
    with pytest.warns(UserWarning, match=f"{name} mixes examples, and the paper") as seen:
        warn_of_mixup(*used, Mixup())
    assert len(seen) == 1


@pytest.mark.parametrize("thing", [None, Data(Compose(abs, torch.nn.Dropout())), Mixup, [0] * 1000, {"Mixup": 1}])
def test_nothing_else_is_taken_for_it(thing):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_mixup(thing)


def test_what_holds_itself_is_looked_at_once():
    one = Compose()
    one.transforms.append(one)
    warn_of_mixup(one)
