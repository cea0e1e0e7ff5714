"""Files that were damaged in any way drawn here: what comes out is right, or one clear error, and nothing else.

A case changes the JSON of a saved folder's config, of the weights' header or of an ONNX file's account somewhere in its
tree, or the bytes of the file anywhere.
"""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import nn

import noble_fx
from noble_fx import CheckpointError, ExportError
from tests.fuzz.budget import fuzzed
from tests.fuzz.messages import check_message

CONFIG, WEIGHTS = "noble_config.json", "model.safetensors"

# --- what is damaged ------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A layer with a branch, one without, and extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(8, 8), nn.Linear(8, 6), nn.BatchNorm1d(8)
        self.steps: Any = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)))

    def get_extra_state(self) -> Any:
        return self.steps

    def set_extra_state(self, state: Any) -> None:
        self.steps = state


@functools.cache
def saved() -> dict[str, bytes]:
    """A whole folder, by file name; with example inputs, as one of an exported model has them."""
    with tempfile.TemporaryDirectory() as folder:
        preset = noble_fx.NoblePreset("mine", True, False, "normal")
        model = noble_fx.transform(Small(), rank=2, select=["a"], rank_pattern={"a": 3}, preset=preset)
        noble_fx.save(model, Path(folder) / "saved")
        files = {path.name: path.read_bytes() for path in (Path(folder) / "saved").iterdir()}
    described = json.loads(files[CONFIG])
    described["inputs"] = {"x": {"tensor": [2, 8], "dtype": "float32", "dynamic": [0]}, "y": {"list": [{"value": 1}]}}
    return files | {CONFIG: json.dumps(described).encode()}


@functools.cache
def exported() -> tuple[bytes, str]:
    """An ONNX file of one node, and the account that a real one carries."""
    model = noble_fx.transform(Small().eval(), rank=2, select=["a"])
    with tempfile.TemporaryDirectory() as folder:
        noble_fx.export_onnx(model, (torch.randn(2, 8),), Path(folder) / "m.onnx", verify=False)
        file = onnx.load(Path(folder) / "m.onnx")
    (entry,) = (entry for entry in file.metadata_props if entry.key == "noble_fx")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Cos", ["x"], ["y"])], "g", [x], [y])
    return onnx.helper.make_model(graph).SerializeToString(), entry.value


# --- how ------------------------------------------------------------------------------------------------------------

WORDS = [
    "auto", "all", "export", "fx", "modules", "require", "cosnet", "gelu", "identity", "noble", "paper", "normal", "4%",
    "a", "b", "(", "a{99999999999}", "[/]", "\x1b[31m\n", "\0", "\ud800", "F32", "I64", "BOOL", "float32", "rank",
]  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, 3, -1, 8, 2**31, 2**62, 2**63, 10**39, 0.5, 1e308, -0.0, "HUGE"])
    | st.sampled_from([float("nan"), float("inf"), float("-inf")])
    | st.integers(-10, 10)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=6)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner),
    max_leaves=6,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of every value in a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@st.composite
def damaged_json(draw: st.DrawFn, text: str) -> str:
    """JSON with one to three values changed, gone or new; sometimes in more brackets, or a name twice."""
    tree = copy.deepcopy(json.loads(text))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(tree)))
        what = draw(st.sampled_from(["change", "change", "remove", "add"]))
        if not path:
            tree = draw(VALUES) if what == "change" and draw(st.integers(0, 9)) == 0 else tree
            continue
        parent = functools.reduce(lambda node, key: node[key], path[:-1], tree)
        if what == "change":
            parent[path[-1]] = draw(VALUES)
        elif what == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(WORDS) | st.text(max_size=4))] = draw(VALUES)
        else:
            parent.append(draw(VALUES))
    made = json.dumps(tree).replace('"HUGE"', "1" + "0" * 5000)  # which Python itself does not write
    match draw(st.sampled_from(["", "", "", "", "", "deep", "twice"])):
        case "deep":
            depth = draw(st.sampled_from([50, 900, 100_000]))
            made = made.replace(":", ":" + "[" * depth, 1) + ("]" * depth if draw(st.booleans()) else "")
        case "twice" if made.startswith("{") and len(made) > 2:
            made = "{" + made[1:-1] + "," + made[1:]
    return made


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut short, changed, left out or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["cut", "change", "remove", "insert"])):
            case "cut":
                del data[at:]
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8) | st.sampled_from([b'"', b"{", b"[", b"]", b"}", b"\xff"]))
    return bytes(data)


# --- what must hold -------------------------------------------------------------------------------------------------


def refused(error: Exception) -> None:
    event("refused")
    check_message(error)


def check_load(name: str, content: bytes) -> None:
    """The folder with this file in it loads, or is refused in one line; refused, it leaves the model as it was."""
    model = Small()
    before = {key: copy.deepcopy(value) for key, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as place:
        for file, kept in (saved() | {name: content}).items():
            (Path(place) / file).write_bytes(kept)
        try:
            noble_fx.load(model, place)
        except CheckpointError as error:
            refused(error)
        else:
            event("loaded")
            return
    after = model.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        assert torch.equal(after[key], value) if isinstance(value, torch.Tensor) else after[key] == value
    assert type(model.a) is type(model.b) is nn.Linear


def check_account(content: bytes) -> None:
    """The file is explained, in lines that a terminal shows as they are, or refused in one line."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "m.onnx"
        path.write_bytes(content)
        for read in (noble_fx.sites, noble_fx.explain):
            try:
                answer = read(path)
            except ExportError as error:
                refused(error)
            else:
                event("read")
                assert all(line.isprintable() for line in str(answer).splitlines())


def with_account(text: str) -> bytes:
    file = onnx.ModelProto.FromString(exported()[0])
    onnx.helper.set_model_props(file, {"noble_fx": text})
    return file.SerializeToString()


@fuzzed(20)
@given(st.data())
def test_configs(data):
    check_load(CONFIG, data.draw(damaged_json(saved()[CONFIG].decode())).encode())


@fuzzed(15)
@given(st.data())
def test_bytes_of_configs(data):
    check_load(CONFIG, data.draw(damaged_bytes(saved()[CONFIG])))


@fuzzed(20)
@given(st.data())
def test_headers_of_weights(data):
    content = saved()[WEIGHTS]
    size = int.from_bytes(content[:8], "little")
    header = data.draw(damaged_json(content[8 : 8 + size].decode())).encode()
    check_load(WEIGHTS, len(header).to_bytes(8, "little") + header + content[8 + size :])


@fuzzed(15)
@given(st.data())
def test_bytes_of_weights(data):
    check_load(WEIGHTS, data.draw(damaged_bytes(saved()[WEIGHTS])))


@fuzzed(20)
@given(st.data())
def test_accounts(data):
    check_account(with_account(data.draw(damaged_json(exported()[1]))))


@fuzzed(15)
@given(st.data())
def test_bytes_of_onnx_files(data):
    check_account(data.draw(damaged_bytes(with_account(exported()[1]))))
