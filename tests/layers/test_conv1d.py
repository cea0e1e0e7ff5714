"""GPT-2's Conv1D: a linear map whose weight is [K, N]."""

import copy
import pickle
import subprocess
import sys

import torch
from torch import nn

import noble_fx
from tests.models import loud


def test_a_branch_beside_a_transposed_weight_fused_and_saved(tmp_path):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    plain, x = nn.Sequential(Conv1D(6, 8)), torch.randn(3, 8)
    model = loud(noble_fx.transform(copy.deepcopy(plain), rank=2, capture="modules"))
    (site,) = noble_fx.sites(model)
    assert (site.kind, site.in_features, site.out_features, site.unfused) == ("Conv1D", 8, 6, "")
    assert isinstance(model[0], Conv1D)
    torch.testing.assert_close(model(x), plain(x) + model[0].noble(x))
    assert torch.equal(model[0](x=x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    noble_fx.save(model, tmp_path / "folder")
    assert torch.equal(noble_fx.load(plain, tmp_path / "folder")(x), model(x))


def test_transformers_is_imported_by_its_users_alone():
    code = (
        "import sys, torch, noble_fx\n"
        "noble_fx.transform(torch.nn.Linear(8, 8), rank=2)\n"
        "print('transformers' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
