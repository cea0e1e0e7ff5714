"""What is exported of a wrapped model is the model itself; what nobody could export has a remedy."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export.unwrap import plain_model


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, checkpoint_wrapper, lambda m: torch.compile(nn.DataParallel(m))],
    ids=["DataParallel", "compile", "checkpoint", "two"],
)
def test_what_hands_calls_on_is_taken_off(wrap):
    model = nn.Linear(4, 4)
    assert plain_model(wrap(model)) is model
    assert plain_model(model) is model


def test_the_average_is_what_an_averaged_model_computes():
    averaged = AveragedModel(nn.Linear(4, 4))
    assert plain_model(averaged) is averaged.module


def test_what_computes_more_is_a_part_of_the_model():
    quantised = torch.ao.quantization.QuantWrapper(nn.Linear(4, 4))
    assert plain_model(quantised) is quantised


class FullyShardedDataParallel(nn.Module):
    __module__ = "torch.distributed.fsdp"

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


def test_a_sharded_model_is_gathered_first():
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ExportError, match=r"the model is sharded by FullyShardedDataParallel, .*get_model_state_dict"):
        plain_model(FullyShardedDataParallel(plain))
    noble_fx.transform(plain, rank=2)
    with pytest.raises(
        ExportError, match=r"'1' is sharded by FullyShardedDataParallel, .*noble_fx.save\(model, folder"
    ):
        plain_model(nn.Sequential(nn.ReLU(), FullyShardedDataParallel(plain)))


def test_what_is_no_python_model():
    with pytest.raises(ExportError, match=r"noble_fx.export_onnx takes an nn.Module, not int"):
        plain_model(5)
    with pytest.raises(ExportError, match=r"a ScriptModule, .*; export the Python model"):
        plain_model(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
