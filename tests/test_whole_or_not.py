"""Every verb is whole or not at all: whatever is raised inside it, wherever, the model and the files are as they were.

A trace function raises when a function of this package is called for the n-th time inside the verb, or a generator of
it goes on. The suite takes a few n of each verb, `make test-long` hundreds.
"""

import itertools
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import noble_fx
from tests.models import Tiny, loud, tiny, tokens

PACKAGE = str(Path(noble_fx.__file__).parent)
EXAMPLES = {"fx": {}, "modules": {}, "export": {"example_inputs": (tokens(),)}}


class Calls:
    """Counts the calls into the package inside; raises `error` at the one of number `at`."""

    def __init__(self, at: int = 0, error: type[BaseException] = RuntimeError):
        self.at, self.error, self.count, self.raised = at, error, 0, False

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)

    def _trace(self, frame, event, arg):
        if frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_name.startswith("__del"):
            self.count += 1
            if self.count == self.at:
                self.raised = True
                raise self.error("stop here")


def shape_of(model: nn.Module) -> dict[str, object]:
    """Everything of a model that has an identity: classes, attributes, what is in its tables, and hooks."""
    derived = {"_code", "_lineno_map", "_prologue_start"}  # by GraphModule, of its graph, each time anew
    shape: dict[str, object] = {}
    for fqn, module in model.named_modules():
        shape[fqn] = (id(module), type(module))
        for name, value in vars(module).items():
            if name not in derived:
                shape[f"{fqn}.{name}"] = (id(value), _inside(value))
    return shape


def _inside(value: object) -> list[object]:
    if isinstance(value, dict | OrderedDict):
        return [(key, id(held)) for key, held in value.items()]
    return sorted(map(id, value)) if isinstance(value, list | set) else []


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}


def plain(capture: str = "fx") -> Tiny:
    model = tiny(layers=1, width=8)
    model.register_buffer("table", torch.arange(4.0))
    model.blocks[0].fc1.note = {"by": "the user"}
    if capture == "modules":  # no graph takes a module with hooks
        model.blocks[0].fc1.register_forward_hook(lambda *_: None)
    return model.train()


def noble(capture: str) -> nn.Module:
    return loud(
        noble_fx.transform(plain(capture), rank=2, seed=0, select="q_proj|fc1", capture=capture, **EXAMPLES[capture])
    ).train()


def inside_disabled(model: nn.Module) -> None:
    with noble_fx.disabled(model):
        model(tokens())


def load(model: nn.Module, folder: Path) -> None:
    noble_fx.load(model, folder / "saved")


def save(model: nn.Module, folder: Path) -> None:
    noble_fx.save(model, folder / "other")


def export_onnx(model: nn.Module, folder: Path) -> None:
    noble_fx.export_onnx(model.eval(), (tokens(),), folder / "other" / "model.onnx")
    model.train()


def transform(capture: str):
    settings = {"rank": 2, "init_base": True, "select": "q_proj|fc1", "capture": capture, **EXAMPLES[capture]}
    return lambda model, folder: noble_fx.transform(model, **settings)


def reformed(capture: str) -> nn.Module:
    settings = {"base": "ordered", "base_settings": None, "guide": 0.5, "select": "q_proj|fc1", "capture": capture}
    return loud(noble_fx.transform(plain(capture), rank=2, seed=0, **settings)).train()


def unguided(capture: str) -> nn.Module:
    model = reformed(capture)
    noble_fx.step(model, 1.0)
    return model


def transform_bases(capture: str):
    settings = {"base": "sparse_low_rank", "base_rank": 2, "guide": 0.5, "select": "q_proj|fc1", "capture": capture}
    return lambda model, folder: noble_fx.transform(model, rank=2, init_base=True, **settings)


CASES = {
    **{f"transform {name}": (lambda name=name: plain(name), transform(name)) for name in EXAMPLES},
    "load": (lambda: plain("modules"), load),
    **{
        f"{verb.__name__} {name}": (lambda name=name: noble(name), lambda model, folder, verb=verb: verb(model))
        for verb, name in itertools.product((noble_fx.remove, inside_disabled), EXAMPLES)
    },
    "reset_branches": (lambda: noble("modules"), lambda model, folder: noble_fx.reset_branches(model)),
    "set_rank": (lambda: noble("modules"), lambda model, folder: noble_fx.set_rank(model, {"q_proj": 3, "fc1": 1})),
    "add_branches": (lambda: noble("modules"), lambda model, folder: noble_fx.add_branches(model, "fc2|o_proj")),
    "remove_branches": (lambda: noble("modules"), lambda model, folder: noble_fx.remove_branches(model, "fc1")),
    "zero_branches": (lambda: noble("modules"), lambda model, folder: noble_fx.zero_branches(model)),
    "fold": (lambda: noble("modules"), lambda model, folder: noble_fx.fold(model)),
    "fold fx": (lambda: noble("fx"), lambda model, folder: noble_fx.fold(model)),
    **{
        f"compress {method}": (
            lambda: noble("modules"),
            lambda model, folder, method=method: noble_fx.compress(
                model, tokens(8, 20), rank=2, method=method, select="fc2|q_proj"
            ),
        )
        for method in ("activations", "saes")
    },
    "save": (lambda: noble("modules"), save),
    "export_onnx": (lambda: noble("modules").eval(), export_onnx),
    **{
        f"transform around blocks {name}": (
            lambda name=name: plain(name),
            lambda model, folder, name=name: noble_fx.transform(
                model, rank=2, scope="block", capture=name, **EXAMPLES[name]
            ),
        )
        for name in EXAMPLES
    },
    **{f"transform bases {name}": (lambda name=name: plain(name), transform_bases(name)) for name in ("fx", "modules")},
    "merge_bases": (lambda: reformed("modules"), lambda model, folder: noble_fx.merge_bases(model)),
    "truncate_bases": (lambda: unguided("modules"), lambda model, folder: noble_fx.truncate_bases(model, rank=2)),
    "step": (lambda: reformed("modules"), lambda model, folder: noble_fx.step(model, 1.0)),
    "explain": (lambda: noble("modules"), lambda model, folder: noble_fx.explain(model)),
    "dry run": (
        plain,
        lambda model, folder: noble_fx.transform(model, rank=2, select="fc1", capture="fx", dry_run=True),
    ),
}


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a destructor


def calls_in(case: str, folder: Path) -> int:
    """How many calls a verb makes, once what it caches is cached."""
    make, verb = CASES[case]
    for _ in range(2):
        model = make()
        with Calls() as calls:
            verb(model, folder)
        for made in folder.glob("other*"):
            for file in [*made.iterdir()]:
                file.unlink()
            made.rmdir()
    return calls.count


def check(case: str, folder: Path, at: int, error: type[BaseException]) -> bool:
    """Whether the verb raised; by then the model must be what it was, and no file may be there that was not."""
    make, verb = CASES[case]
    model = make()
    files, shape, values = sorted(folder.rglob("*")), shape_of(model), values_of(model)
    expected = model.eval()(tokens())
    model.train()
    try:
        with Calls(at, error):
            verb(model, folder)
        shutil.rmtree(folder / "other", ignore_errors=True)
        return False
    except (error, noble_fx.NobleError):
        pass
    where = f"{case}: {error.__name__} at call {at}"
    now = shape_of(model)
    assert not {name for name in {*now, *shape} if now.get(name) != shape.get(name)}, where
    after = model.state_dict(keep_vars=True)
    assert all(torch.equal(after[name], value) for name, value in values.items()), where
    if (folder / "other").exists():  # stopped on its way back: all was written by then
        whole = {"model.onnx"} if case == "export_onnx" else {"model.safetensors", "noble_config.json"}
        assert {file.name for file in (folder / "other").iterdir()} == whole, where
        shutil.rmtree(folder / "other")
    assert sorted(folder.rglob("*")) == files, where
    assert torch.equal(model.eval()(tokens()), expected), where
    return True


@pytest.fixture
def folder(tmp_path):
    noble_fx.save(noble("modules"), tmp_path / "saved")
    return tmp_path


def spread(calls: int, samples: int) -> list[int]:
    """Numbers from 1 to `calls`: the first and the last few, and others evenly between."""
    ends = {1, 2, calls - 1, calls}
    return sorted(ends | {1 + (calls - 1) * i // samples for i in range(samples)})


@pytest.mark.parametrize("case", [case for case in CASES if "export" not in case])
def test_a_verb_that_is_stopped_leaves_all_as_it_was(case, folder):
    errors = itertools.cycle((KeyboardInterrupt, RuntimeError))
    stopped = [check(case, folder, at, next(errors)) for at in spread(calls_in(case, folder), 6)]
    assert any(stopped)


@pytest.mark.long
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("case", CASES)
def test_a_verb_that_is_stopped_anywhere_leaves_all_as_it_was(case, error, folder):
    samples = 25 if case == "export_onnx" else 300  # it takes seconds a time
    stopped = [check(case, folder, at, error) for at in spread(calls_in(case, folder), samples)]
    assert any(stopped)
