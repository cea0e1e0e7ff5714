"""Sums gathered batch by batch, against the rows themselves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.compressing.calibration import Batch, Calibration
from noble_fx.compressing.gather import gather, rows_of
from noble_fx.compressing.order import first_run
from noble_fx.errors import ConfigError
from tests.compressing.models import batches, exact, inputs_of, places_of, track, with_branches


def gathered(model: nn.Module, given, select="auto", **settings):
    places = places_of(model, select)
    calibration = Calibration(given)
    order = first_run(model, places, calibration.first())
    return gather(model, places, order, calibration, track, **settings)


def features(model: nn.Module, name: str, given, of_outputs: bool) -> torch.Tensor:
    x, layer = inputs_of(model, name, given), model.get_submodule(name)
    branch = layer._modules.get("noble")
    t = branch.before_up(x) if branch is not None else x[:, :0]
    z = F.linear(x, layer.weight.detach()) if of_outputs else x
    return torch.cat([z, t.detach(), torch.ones(len(x), 1, dtype=torch.float64)], 1)


@pytest.mark.parametrize("needs_inputs", [True, False])
@pytest.mark.parametrize("make", [exact, with_branches])
def test_the_sums_are_those_of_all_rows(make, needs_inputs):
    model, given = make(), batches()
    found = gathered(model, given, needs_inputs=needs_inputs)
    assert len(found) == 12
    for name, sums in found.items():
        v = features(model, name, given, sums.of_outputs)
        assert sums.rows == len(v) == 4 * 8 * 12
        torch.testing.assert_close(sums.sums, v.T @ v)
        assert sums.cross is None
        assert not (needs_inputs and sums.of_outputs)


def test_outputs_are_summed_where_that_is_less():
    found = gathered(exact(), batches(), needs_inputs=False)
    kinds = {name.rpartition(".")[2]: sums.of_outputs for name, sums in found.items()}
    # q, k and v share 16² of x against three times that; fc2 has half as many outputs as inputs
    assert kinds == {"q_proj": False, "k_proj": False, "v_proj": False, "o_proj": False, "fc1": False, "fc2": True}


def test_the_target_of_another_model():
    model, original, given, beta = with_branches(), with_branches(), batches(), 0.4
    with torch.no_grad():
        model.blocks[0].fc2.weight *= 0.8
    places = places_of(original, "blocks.1")
    found = gathered(model, given, "blocks.1", original=(original, places, beta))
    for name, sums in found.items():
        v, aimed = (features(each, name, given, False) for each in (model, original))
        torch.testing.assert_close(sums.sums, v.T @ v)
        torch.testing.assert_close(sums.cross, ((1 - beta) * v + beta * aimed).T @ v)


class Head(nn.Module):
    """Two layers, and an output that must not be computed."""

    def __init__(self, times: int = 1):
        super().__init__()
        self.a, self.b, self.times, self.reached = nn.Linear(4, 4), nn.Linear(4, 4), times, 0

    def forward(self, x):
        for _ in range(self.times):
            x = self.b(self.a(x))
        self.reached += 1
        return x


def test_the_run_ends_at_the_last_layer():
    model = Head()
    gathered(model, [torch.randn(5, 4)] * 3, "all")
    assert model.reached == 1  # the first run alone, which found out
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_of_a_layer_that_is_called_again_every_call_counts():
    model = Head(times=3)
    found = gathered(model, [torch.randn(5, 4)] * 3, "all")
    assert model.reached == 4
    assert found["b"].rows == 45


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_with_its_layer_and_batch(bad):
    given = [torch.randn(5, 4) for _ in range(3)]
    given[2][1, 1] = bad
    with pytest.raises(ConfigError, match="the input of 'a' is not finite in calibration batch 2"):
        gathered(Head(), given, "all")


def test_layers_that_share_an_input_at_first_alone():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.c(self.a(x) + self.b(x if x.sum() > 0 else 2 * x))

    with pytest.raises(ConfigError, match="'b' read the input of 'a' in the first batch and another one later"):
        gathered(Changing(), [torch.ones(2, 4), -torch.ones(2, 4)], "all")


def test_layers_that_are_called_together_at_first_alone():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            y = self.a(x)
            return self.c(y + self.b(x) if x.sum() > 0 else y)

    with pytest.raises(ConfigError, match="'b' read the input of 'a' in the first batch"):
        gathered(Skipping(), [torch.ones(2, 4), -torch.ones(2, 4)], "all")


def test_low_precision_is_summed_in_float64():
    model = exact().bfloat16()
    found = gathered(model, batches())
    x = inputs_of(model, "blocks.0.fc1", batches())
    torch.testing.assert_close(found["blocks.0.fc1"].sums[:-1, :-1], x.T @ x, rtol=1e-12, atol=1e-12)


def test_autocast_is_the_models_alone():
    model = exact().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = gathered(model, batches(), needs_inputs=False)
        x = inputs_of(model, "blocks.1.fc2", batches())
    y = x @ model.blocks[1].fc2.weight.detach().double().T
    torch.testing.assert_close(found["blocks.1.fc2"].sums[:-1, :-1], y.T @ y, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_rows():
    assert rows_of(torch.ones(2, 3, 4)).shape == (6, 4)
    assert rows_of(torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)])).shape == (5, 4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_padding():
    """In eval mode it makes nested tensors of padded inputs; its layers' rows are those that are not padding."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    places = places_of(encoder, "linear")
    batch = Batch((torch.randn(2, 5, 8),), {"src_key_padding_mask": mask}, "calibration")
    order = first_run(encoder, places, batch)
    found = gather(encoder, places, order, Calibration([(batch.args[0], None, mask)]), track)
    assert {sums.rows for sums in found.values()} in ({8}, {10})
