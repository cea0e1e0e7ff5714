"""LISA: which blocks learn, what the optimizer keeps, and what it does to graphs."""

import pytest
import torch
import transformers

import noble_fx
from examples.optimizers.lisa import Lisa, NobleTrainer, main


class Recorded(Lisa):
    """It notes which blocks learn, and which parameters changed in each step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.model, self.steps = model, []

    def on_step_begin(self, args, state, control, **kwargs):
        super().on_step_begin(args, state, control, **kwargs)
        self.before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.wanted = {name for name, p in self.model.named_parameters() if p.requires_grad}

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        after = dict(self.model.named_parameters())
        changed = {name for name, p in after.items() if not torch.equal(p, self.before[name])}
        moments = {name for name, p in after.items() if optimizer.state.get(p)}
        self.steps.append((self.wanted, changed, moments))


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return noble_fx.transform(transformers.LlamaForCausalLM(config), rank=4, seed=0)


def run(folder, active=1, period=2, steps=8, frozen=()):
    made = model()
    for name in frozen:
        made.get_parameter(name).requires_grad_(False)
    torch.manual_seed(1)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(32, (16, 8))]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant",
        weight_decay=0.1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    callback = Recorded(made.model.layers, active=active, period=period)
    NobleTrainer(model=made, args=arguments, train_dataset=rows, callbacks=[callback]).train()
    return made, callback.steps


def blocks_of(names) -> set[int]:
    return {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}


@pytest.mark.parametrize("active", [1, 2])
def test_so_many_blocks_learn_with_their_branches_and_the_rest_is_as_it_was(tmp_path, active):
    made, steps = run(tmp_path, active=active)
    every = {name for name, _ in made.named_parameters()}
    for wanted, changed, moments in steps:
        drawn = blocks_of(wanted)
        assert len(drawn) == active
        own = {name for name in every if not name.startswith("model.layers.") or blocks_of([name]) <= drawn}
        assert wanted == changed == moments == own
        assert any(".noble." in name for name in changed)
    assert len({frozenset(blocks_of(wanted)) for wanted, _, _ in steps}) > 1
    assert all(p.requires_grad for p in made.parameters())


def test_what_was_frozen_before_stays_so(tmp_path):
    made, steps = run(tmp_path, active=4, frozen=["model.layers.1.mlp.up_proj.weight"])
    assert all("model.layers.1.mlp.up_proj.weight" not in changed for _, changed, _ in steps)
    assert not made.get_parameter("model.layers.1.mlp.up_proj.weight").requires_grad


def test_a_period_has_one_draw_however_it_began():
    def drawn(step):
        blocks = [torch.nn.Linear(2, 2) for _ in range(6)]
        lisa, optimizer = (
            Lisa(blocks, active=2, period=5),
            torch.optim.AdamW([p for b in blocks for p in b.parameters()]),
        )
        lisa.on_train_begin(None, transformers.TrainerState(global_step=step), None, optimizer=optimizer)
        return [block.weight.requires_grad for block in blocks]

    assert drawn(5) == drawn(7) == drawn(9)
    assert len({tuple(drawn(step)) for step in range(0, 50, 5)}) > 3


def test_a_compiled_model_is_compiled_again_for_each_draw_and_a_captured_graph_is_not_wrong():
    torch._dynamo.reset()
    compiled = []
    made = noble_fx.transform(torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(3)]), rank=2, seed=0)
    called = torch.compile(made, backend=lambda graph, inputs: compiled.append(graph) or graph)
    fx = noble_fx.transform(torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(3)]), rank=2, capture="fx")
    for draw in (0, 1, 2, 0):
        for each in (made, fx):
            for name, parameter in each.named_parameters():
                parameter.grad = None
                parameter.requires_grad_(name.startswith(str(draw)))
        called(torch.ones(2, 8)).sum().backward()
        fx(torch.ones(2, 8)).sum().backward()
        learned = {name[0] for name, p in fx.named_parameters() if p.grad is not None and p.grad.any()}
        assert learned == {str(draw)}
    assert len(compiled) == 3


def test_blocks_compiled_one_by_one_have_two_forms():
    torch._dynamo.reset()
    compiled = []
    made, ids = model(), torch.zeros(1, 4, dtype=torch.long)

    def backend(graph, inputs):  # one for all, which Dynamo compares
        compiled.append(graph)
        return graph

    for block in made.model.layers:
        block.compile(backend=backend)
    for draw in range(4):
        for index, block in enumerate(made.model.layers):
            block.requires_grad_(index == draw)
        made(ids, use_cache=False).logits.sum().backward()
    assert len(compiled) == 2


def test_it_runs(capsys):
    main()
    assert "train_loss" in capsys.readouterr().out
