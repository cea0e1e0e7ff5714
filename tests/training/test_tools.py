"""Tools around a step that know nothing of branches: checkpoints that choose, compiled steps, averages, replicas."""

import functools
from collections import Counter

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import noble_fx
from tests.models import loud, tiny, tokens

FORWARD = (torch.ops.noble_fx.linear_forward.default, torch.ops.noble_fx.linear_group_forward.default)


def model(**settings) -> nn.Module:
    return loud(noble_fx.transform(tiny(layers=1), rank=3, seed=0, **settings))


def gradients(made: nn.Module, run) -> list[Tensor]:
    made.zero_grad()
    run(tokens()).square().mean().backward()
    return [parameter.grad.clone() for parameter in made.parameters()]


# --- selective activation checkpoints --------------------------------------------------------------------------------


class Runs(TorchDispatchMode):
    """Counts the operators of this project that really run."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "noble_fx":
            self.counted[function.name().removeprefix("noble_fx::")] += 1
        return function(*args, **(kwargs or {}))


def save_only(operators, context, operator, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if operator in operators else CheckpointPolicy.PREFER_RECOMPUTE


class Checkpointed(nn.Module):
    """The model with its blocks under activation checkpoints that save the results of `operators`."""

    def __init__(self, made: nn.Module, operators=()):
        super().__init__()
        self.made = made
        policy = functools.partial(save_only, operators)
        self.contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.made.embed(idx)
        for block in self.made.blocks:
            x = checkpoint(block, x, use_reentrant=False, context_fn=self.contexts)
        return self.made.head(x)


@pytest.mark.parametrize(("operators", "forwards"), [((), 12), (FORWARD, 6)])
def test_a_policy_decides_whether_the_operator_runs_again(operators, forwards):
    made = model()
    expected = gradients(made, made)
    with Runs() as runs:
        found = gradients(made, Checkpointed(made, operators))
    assert runs.counted == {"linear_forward": forwards, "linear_backward": 6}
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", ["aot", "noble_fx"])
def test_and_in_a_compiled_step(backend):
    """There an operator has come apart, and what the policy says of it holds for all that it is made of."""
    made = model(select="q_proj|v_proj|fc1")
    expected = gradients(made, made)
    for operators, again in (((), True), (FORWARD, False)):
        torch._dynamo.reset()
        nodes: Counter = Counter()
        then = aot_autograd(fw_compiler=counting(nodes, "forward"), bw_compiler=counting(nodes, "backward"))
        settings = {"backend": then} if backend == "aot" else {"backend": "noble_fx", "options": {"then": then}}
        found = gradients(made, torch.compile(Checkpointed(made, operators), fullgraph=True, **settings))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert nodes["forward", "stack"] == (backend == "noble_fx")  # q and v read the same x, so their h is one tensor
        assert nodes["forward", "bottleneck"] == 3
        assert nodes["backward", "bottleneck"] == (3 if again else 0)


def counting(nodes: Counter, where: str):
    """Notes how often h = x Dᵀ is computed, and whether the h of several sites are put together."""

    def is_bottleneck(node: fx.Node) -> bool:
        if node.target not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            return False
        right = node.args[-1].meta["val"]  # Dᵀ [K, r], as D lies; U [N, r] of dt = dy U is contiguous
        return right.shape[1] == 3 and right.shape[0] > 3 and right.stride(0) == 1

    def compile_graph(graph_module, example_inputs):
        for node in graph_module.graph.nodes:
            nodes[where, "bottleneck"] += is_bottleneck(node)
            nodes[where, "stack"] += node.target is torch.ops.aten.stack.default
        return make_boxed_func(graph_module.forward)

    return compile_graph


# --- compiled steps --------------------------------------------------------------------------------------------------


def test_a_compiled_optimizer_follows_the_rates_without_compiling_again():
    graphs = []

    def backend(graph_module, example_inputs):
        graphs.append(graph_module)
        return graph_module.forward

    ended = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        made = noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=2, seed=0)
        optimizer = torch.optim.AdamW(noble_fx.param_groups(made, lr=torch.tensor(1e-3), weight_decay=0.1))
        step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for at in range(4):
            noble_fx.scale_lr(optimizer, 1e-2 / (at + 1))
            optimizer.zero_grad()
            made(torch.ones(3, 8)).square().sum().backward()
            step()
        ended.append([*made.parameters(), *(group["lr"] for group in optimizer.param_groups)])
        if compiled:
            assert len(graphs) == 1
    for one, other in zip(*ended, strict=True):
        torch.testing.assert_close(one, other)
    assert len({round(float(rate), 9) for rate in ended[1][-len(optimizer.param_groups) :]}) > 3  # ratios are kept


@pytest.mark.parametrize("first", ["transform", "compile"])
def test_blocks_that_are_compiled_one_by_one_in_either_order(first):
    torch._dynamo.reset()
    plain = tiny(layers=2)
    if first == "compile":
        plain.blocks[0].compile(backend="aot_eager")
    made = loud(noble_fx.transform(plain, rank=3, seed=0))
    for block in made.blocks if first == "transform" else made.blocks[1:]:
        block.compile(backend="aot_eager", fullgraph=True)
    eager = loud(noble_fx.transform(tiny(layers=2), rank=3, seed=0))
    for one, other in zip(gradients(made, made), gradients(eager, eager), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    noble_fx.remove(made)
    torch.testing.assert_close(made(tokens()), tiny(layers=2)(tokens()))


# --- averages --------------------------------------------------------------------------------------------------------


def test_an_average_is_that_of_every_parameter_and_can_be_saved(tmp_path):
    made = model()
    optimizer = torch.optim.AdamW(noble_fx.param_groups(made, lr=1e-2))
    average = AveragedModel(made, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    by_hand: dict[str, Tensor] = {}
    for _ in range(3):
        optimizer.zero_grad()
        made(tokens()).square().mean().backward()
        optimizer.step()
        average.update_parameters(made)
        for name, value in made.named_parameters():
            now = value.detach().double()
            by_hand[name] = (by_hand.get(name, now) + now) / 2
    assert all(site.unfused == "" for site in noble_fx.sites(average) if site.selected)  # the copy is fused as well
    for name, value in average.module.named_parameters():
        torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-6, atol=1e-7)
    loaded = noble_fx.load(tiny(layers=1), noble_fx.save(average, tmp_path / "average"))
    assert torch.equal(loaded(tokens()), average(tokens()))
    assert not torch.equal(loaded(tokens()), made(tokens()))


# --- a quantized base ------------------------------------------------------------------------------------------------


def test_every_verb_of_training_takes_a_model_with_a_quantized_base():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    quantize_(made, Int8WeightOnlyConfig())
    made, x = loud(noble_fx.transform(made, rank=4, seed=0)), torch.randn(8, 32)
    optimizer = torch.optim.AdamW(noble_fx.param_groups(made, lr=1e-3))
    with noble_fx.watching(made) as seen:
        made(x).square().mean().backward()
    numbers = noble_fx.stats(made, optimizer, seen)
    assert 0 < numbers["noble/0/share"] < 10
    biases = torch.linalg.vector_norm(torch.cat([made[0].bias, made[2].bias])).item()
    assert numbers["noble/total/norm/base"] == pytest.approx(biases)
    optimizer.step()
    assert "is finite" in str(noble_fx.find_nonfinite(made, x))
    with torch.no_grad():
        made[0].weight.scale.fill_(float("inf"))
    assert "base output" in str(noble_fx.find_nonfinite(made, x))
    made[0].weight.scale.fill_(0.01)
    before = made(x)
    noble_fx.set_rank(made, 6, optimizer)
    torch.testing.assert_close(made(x), before, rtol=1e-4, atol=1e-5)
    noble_fx.remove_branches(made, "^0$", optimizer)
    noble_fx.add_branches(made, "^0$", optimizer=optimizer)
    noble_fx.zero_branches(made)
    with noble_fx.disabled(made):
        base = made(x)
    assert torch.equal(made(x), base)


# --- DataParallel ----------------------------------------------------------------------------------------------------


def replica(made: nn.Module) -> nn.Module:
    """What `torch.nn.parallel.replicate` makes for a device: modules that share all but tensors, which are computed."""
    copies = {module: module._replicate_for_data_parallel() for module in made.modules()}
    for module, copy in copies.items():
        for name, child in module._modules.items():
            setattr(copy, name, copies.get(child))
        for name, parameter in module._parameters.items():
            if parameter is None:
                copy._parameters[name] = None
            else:
                setattr(copy, name, parameter * 1)
    return copies[made]


def test_replicas_give_their_gradients_to_the_model():
    made = model()
    expected, y = gradients(made, made), made(tokens())
    found = gradients(made, lambda idx: torch.cat([replica(made)(part) for part in idx.chunk(2)]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert torch.equal(nn.DataParallel(made)(tokens()), y)  # without a GPU, the model itself
    assert all(site.unfused == "" for site in noble_fx.sites(made) if site.selected)
