"""What goes wrong by an argument, or is stopped anywhere: a line says so, the model and the files are as they were.

A case calls a verb with one to three arguments that are something else than what they should be; or stops it, by an
interrupt or an error, at the n-th call into the package.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from hypothesis import event, given, note
from hypothesis import strategies as st
from torch import nn

import noble_fx
from noble_fx import NobleError
from tests import test_whole_or_not as whole
from tests.fuzz.budget import fuzzed
from tests.fuzz.messages import check_message

# --- arguments that are wrong, more or less --------------------------------------------------------------------------


def fails(*args: Any, **kwargs: Any) -> Any:
    raise LookupError("a callable of the user's that fails")


class Odd:
    """Nothing that a verb takes; its text has two lines."""

    def __repr__(self) -> str:
        return "odd\nthing"


class Unbuilt(nn.Module):
    def __init__(self, *args: Any) -> None:
        raise RuntimeError("no such module")


class OddBranch(noble_fx.Branch):
    kind = "odd"

    def forward(self, x: Any) -> Any:
        return x

    def reset_parameters(self) -> None:
        pass


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 64, 10**30, 0.0, 0.5, 1.0, 1e-9, -2.5, float("nan"), float("inf"), 1j),
    *("", "auto", "all", "nope", "a", "fc", "a\nb", "\x1b[31m", "\0", "\ud800", "(", "a{99999999999}", "4%", "0%"),
    *(b"a", [], ["fc"], ["nope"], [1], [None], (), ("fc", "fc"), {}, {"fc": 2}, {"fc": "x"}, {"(": 1}, {"fc": 10**9}),
    *({1: 2}, {"nope": 2}, {"x": {0: None}}, {"fc"}, frozenset(), Odd(), [Odd()], {"a": Odd()}, Ellipsis, range(3)),
    *(int, nn.Module, nn.Linear, nn.ReLU, Unbuilt, OddBranch, nn.ReLU(), torch.zeros(2), torch.zeros(3, 5)),
    *(torch.float32, torch.float16, torch.int32, torch.device("meta"), fails, len, lambda *args: None),
    *(lambda rank: nn.Linear(rank, rank + 1), lambda rank: nn.Linear(3, 3), numpy.int64(3), numpy.zeros(2)),
    *(noble_fx.NobleConfig(), noble_fx.PRESETS["paper"], (torch.zeros(3, 6),), ("a", torch.zeros(1)), slice(1)),
    *(Path("x"), lambda *args: "x", [torch.zeros(0, 6)], "9e9%"),
]  # fmt: skip
ARGUMENTS = st.sampled_from(range(len(ODD))).map(ODD.__getitem__)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 6)
        self.register_buffer("table", torch.arange(4.0))
        self.note = {"by": ["the user"]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.fc(x)))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def noble(**settings: Any) -> nn.Module:
    return noble_fx.transform(plain(), **{"rank": 2, "seed": 0, "select": "all", **settings})


MODELS: list[Callable[[], Any]] = [
    plain,
    noble,
    functools.partial(noble, act=lambda rank: nn.GELU()),
    functools.partial(noble, capture="fx"),
    lambda: noble_fx.fold(noble()),
    lambda: plain().to("meta"),
    lambda: plain().half(),
    lambda: torch.nn.DataParallel(noble()),
    nn.Identity,
]


@functools.cache
def saved() -> Path:
    """A folder for as long as the tests run."""
    folder = Path(tempfile.mkdtemp(prefix="noble_fx_fuzz_"))
    noble_fx.save(noble(), folder / "saved")
    return folder / "saved"


class Stopped(Exception):
    """An export that came as far as its work: what may be wrong by its arguments was looked at."""


def stop(stage: str) -> None:
    if stage == "capture":
        raise Stopped


Verb = Callable[..., Any]
_SETTINGS = ("branch", "select", "exclude", "rank_pattern", "preset", "init_base", "capture", "fuse", "seed", "typo")
VERBS: dict[str, tuple[Verb, Callable[[], Any], dict[str, Any], tuple[str, ...]]] = {
    # the function, a model that it takes, the arguments that it is given, the names of others
    "transform": (noble_fx.transform, plain, {"rank": 2}, _SETTINGS),
    "transform fx": (noble_fx.transform, plain, {"rank": 2, "capture": "fx", "select": "all"}, _SETTINGS),
    "load": (noble_fx.load, plain, {"folder": None}, ()),
    "save": (noble_fx.save, noble, {"folder": None}, ()),
    "remove": (noble_fx.remove, noble, {}, ()),
    "reset_branches": (noble_fx.reset_branches, noble, {}, ()),
    "fold": (noble_fx.fold, noble, {}, ()),
    "explain": (noble_fx.explain, noble, {}, ()),
    "sites": (noble_fx.sites, noble, {}, ()),
    "param_groups": (noble_fx.param_groups, noble, {"lr": 1e-3}, ()),
    "disabled": (lambda model: noble_fx.disabled(model).__enter__(), noble, {}, ()),
    "export_onnx": (
        noble_fx.export_onnx,
        noble,
        {"args": (torch.zeros(3, 6),), "path": None, "progress": stop, "verify": False},
        (),
    ),
}


def names_of(verb: Verb, given: dict[str, Any], others: tuple[str, ...]) -> list[str]:
    """The arguments of a verb, the model first."""
    own = [name for name, p in inspect.signature(verb).parameters.items() if p.kind is not p.VAR_KEYWORD]
    return [*dict.fromkeys([*own, *given, *others])]


def same(model: Any, before: Any, expected: dict[str, torch.Tensor]) -> None:
    now = whole.shape_of(model)
    assert not {name for name in {*now, *before} if now.get(name) != before.get(name)}
    after = model.state_dict(keep_vars=True)
    assert after.keys() == expected.keys()
    assert all(value.is_meta or torch.equal(after[name], value) for name, value in expected.items())


CALLED = ("select", "progress")  # with what they are documented to take; what goes wrong inside is the user's own


def call(verb: str, wrong: dict[str, Any]) -> str:
    """The verb with these arguments among others that are right; how it ended."""
    function, make, right, _ = VERBS[verb]
    with tempfile.TemporaryDirectory() as place:
        paths = {"save": Path(place) / "new", "load": saved(), "export_onnx": Path(place) / "m.onnx"}
        arguments = {name: paths[verb] if value is None else value for name, value in right.items()} | wrong
        for name in ("folder", "path"):  # whatever is written is written there
            if isinstance(wrong.get(name), str | Path):
                arguments[name] = f"{place}/{wrong[name]}"
        arguments.setdefault("model", make())
        model = arguments["model"]
        if isinstance(model, nn.Module):
            shape, values = whole.shape_of(model), whole.values_of(model)
        ended = outcome(function, arguments)
        if ended != "done":
            if isinstance(model, nn.Module):
                same(model, shape, values)
            assert not list(Path(place).iterdir())
        return ended


def outcome(function: Verb, arguments: dict[str, Any]) -> str:
    """Done, or refused in a line of ours or of Python's own, or ended by an error of the user's own."""
    try:
        function(**arguments)
    except Stopped:
        return "nothing wrong"
    except NobleError as error:
        check_message(error)
        return "refused"
    except Exception as error:
        if isinstance(error, TypeError) and any(f"'{name}'" in str(error) for name in arguments):
            return "refused by Python"
        if not any(callable(arguments.get(name)) and arguments[name] is not stop for name in CALLED):
            raise
        return "the user's own error"
    return "done"


@fuzzed(few=40)
@given(data=st.data())
def test_arguments(data):
    verb = data.draw(st.sampled_from(list(VERBS)))
    function, _, right, others = VERBS[verb]
    names = names_of(function, right, others)
    wrong = data.draw(st.dictionaries(st.sampled_from(names), ARGUMENTS, min_size=1, max_size=3))
    if "model" in wrong and data.draw(st.booleans()):
        wrong["model"] = data.draw(st.sampled_from(MODELS))()
    note(f"{verb} {wrong}")
    event(f"{verb}: {call(verb, wrong)}")


# --- stopped anywhere ------------------------------------------------------------------------------------------------

STOPPED = [case for case in whole.CASES if "export" not in case]


@functools.cache
def folder() -> SimpleNamespace:
    """A folder with a saved model in it, and how many calls each verb makes."""
    place = Path(tempfile.mkdtemp(prefix="noble_fx_fuzz_"))
    noble_fx.save(whole.noble("modules"), place / "saved")
    return SimpleNamespace(place=place, calls=functools.cache(lambda case: whole.calls_in(case, place)))


@fuzzed(few=6, cost=8)
@given(
    case=st.sampled_from(STOPPED),
    share=st.floats(0, 1),
    error=st.sampled_from([KeyboardInterrupt, RuntimeError, MemoryError, SystemExit]),
)
def test_stopped(case, share, error):
    at = 1 + int(share * (folder().calls(case) - 1))
    event("stopped" if whole.check(case, folder().place, at, error) else "done")
