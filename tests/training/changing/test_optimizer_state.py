import pytest
import torch
from torch import nn

from noble_fx import ConfigError
from noble_fx.branches.channels import Axis, Kept
from noble_fx.training.changing.optimizer_state import carried_state
from noble_fx.training.changing.parameter_changes import Change

KEPT = Kept(3, 2, {0: torch.tensor([0, 2])})
CHANGE = Change(
    "fc.up", nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4, 2)), 1.0, KEPT, (None, Axis(0, True))
)


def test_tensors_of_the_shape_and_numbers():
    moment = torch.arange(12.0).reshape(4, 3)
    state = {"step": torch.tensor(7.0), "count": 3, "exp_avg": moment, "none": None, "low": moment.bfloat16()}
    made = carried_state(state, CHANGE, "AdamW")
    assert torch.equal(made["exp_avg"], moment[:, [0, 2]])
    assert made["low"].dtype == torch.bfloat16
    assert made["step"] == 7
    assert made["step"] is not state["step"]
    assert made["count"] == 3
    assert made["none"] is None


@pytest.mark.parametrize("value", [torch.zeros(4), [torch.zeros(4, 3)], torch.zeros(12)])
def test_anything_else_is_refused(value):
    with pytest.raises(ConfigError, match=r"'memory' that Strange keeps of 'fc.up' \[4, 3\]"):
        carried_state({"memory": value}, CHANGE, "Strange")
