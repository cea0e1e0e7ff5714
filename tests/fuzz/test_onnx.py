"""A drawn model, exported as drawn: the file computes what the model does, on inputs that the export never saw.

Each case is a few layers of mixed dtypes, example inputs and settings. What cannot be written is said in so many words;
the model, its buffers and the random numbers that come next stay as they were.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import event, given, note
from hypothesis import strategies as st
from torch import Tensor, nn

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export.reference import reference
from noble_fx.onnx_export.session import MissingKernel, OnnxModel
from noble_fx.onnx_export.tolerance import tolerance_of
from tests.fuzz.budget import fuzzed

FLOATS = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
ACTS = ("cosnet", "cosnet_double", "cos", "gelu", "gelu_net", "swiglu_net", "identity", "relu", "tanh")
REFUSED = ("takes no", "cannot write opset")  # what may be refused: an operator's dtype, an opset


class Counts(nn.Module):
    """A buffer that every call changes, in a dtype of its own."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("calls", torch.ones((), dtype=torch.float64))
        self.register_buffer("shift", torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + (self.shift * self.calls).to(x.dtype)


class Part(nn.Module):
    """A layer in a dtype of its own, with or without a residual; the stream keeps its dtype."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype, residual: bool):
        super().__init__()
        self.layer, self.dtype, self.residual = layer.to(dtype), dtype, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.to(self.dtype)).to(x.dtype)
        return x + y if self.residual and y.shape == x.shape else y


class Model(nn.Module):
    """Features, and where `ids` are given an embedding of them and a mask that says which rows count."""

    def __init__(self, width: int, parts: list[nn.Module]):
        super().__init__()
        self.embed, self.parts = nn.Embedding(11, width), nn.ModuleList(parts)

    def forward(self, x: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> Any:
        if ids is not None:
            x = x + self.embed(ids).to(x.dtype)
        for part in self.parts:
            x = part(x)
        if mask is not None:
            x = x * mask[..., None]
        return x if ids is None else {"y": x, "next": ids + 1}


def _layer(draw: Any, width: int, out: int) -> nn.Module:
    kind = draw(st.sampled_from(["linear", "linear", "mlp", "norm", "act", "counts", "attention"]))
    if kind == "linear":
        return nn.Linear(width, out, bias=draw(st.booleans()))
    if kind == "mlp":
        act = draw(st.sampled_from([nn.GELU(), nn.SiLU(), nn.Tanh(), nn.GELU("tanh"), nn.Softplus()]))
        return nn.Sequential(nn.Linear(width, 2 * width), act, nn.Dropout(0.5), nn.Linear(2 * width, out))
    if kind == "norm":
        return draw(st.sampled_from([nn.LayerNorm(width), nn.RMSNorm(width), nn.Identity()]))
    if kind == "attention":
        return nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
    return Counts(width) if kind == "counts" else draw(st.sampled_from([nn.ReLU(), nn.Softmax(-1), nn.LogSigmoid()]))


@st.composite
def models(draw: Any) -> nn.Module:
    """Models with branches that matter, in train or eval mode."""
    torch.manual_seed(draw(st.integers(0, 9)))
    width, main = draw(st.sampled_from([4, 6, 8])), draw(st.sampled_from(FLOATS))
    mixed = draw(st.booleans())
    parts: list[nn.Module] = [Part(nn.Linear(width, width), main, True)]
    for _ in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from(FLOATS)) if mixed else main
        parts.append(Part(_layer(draw, width, width), dtype, draw(st.booleans())))
    model = Model(width, parts)
    settings = {"rank": draw(st.integers(1, 3)), "act": draw(st.sampled_from(ACTS)), "fuse": draw(st.booleans())}
    settings |= {"preset": draw(st.sampled_from(["paper", "reference"])), "select": "all", "seed": 0}
    model = noble_fx.transform(model, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("noble.up"):
                parameter.normal_(std=0.3)
    return model.train(draw(st.booleans()))


def inputs(model: Model, shape: tuple[int, ...], dtype: torch.dtype, with_ids: bool, seed: int) -> tuple[Tensor, ...]:
    """x [*shape, K] and, where asked for, ids and a mask [*shape]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, model.embed.embedding_dim, generator=generator).to(dtype)
    if not with_ids:
        return (x,)
    ids = torch.randint(0, 11, shape, generator=generator)
    return x, ids, torch.rand(shape, generator=generator) > 0.3


@fuzzed(few=1, cost=200)
@given(data=st.data())
def test_a_file_is_its_model(data):
    model = data.draw(models())
    dtype, three = data.draw(st.sampled_from(FLOATS)), data.draw(st.booleans())
    with_ids = data.draw(st.booleans())
    args = inputs(model, (2, 3) if three else (3,), dtype, with_ids, 0)
    settings = {
        "opset": data.draw(st.sampled_from([None, None, 18, 20, 22, 23])),
        "dtype": data.draw(st.sampled_from([None, None, None, torch.float32, torch.float16])),
        "fold": data.draw(st.booleans()),
        "functions": data.draw(st.booleans()),
        "join": data.draw(st.sampled_from(["auto", "up", "down", False])),
    }
    note(f"{model}\n{[(list(a.shape), a.dtype) for a in args]}\n{settings}")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder:
        error = _refusal(model, args, Path(folder) / "m.onnx", settings)
        event("refused" if error else "written")
        if error:
            assert any(words in str(error) for words in REFUSED), error
            assert not list(Path(folder).iterdir())
        else:
            _check_file(model, Path(folder) / "m.onnx", settings["dtype"], three, dtype, with_ids)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random, torch.get_rng_state())


def _refusal(model, args, path, settings):
    try:
        noble_fx.export_onnx(model, args, path, **settings)
    except ExportError as error:
        return error


def _check_file(model, path, asked, three, dtype, with_ids):
    """The file on inputs of another size and other values, against the model's own result."""
    try:
        file: Any = OnnxModel(path, device="cpu")
        run = lambda tensors: (lambda out: out if isinstance(out, tuple) else (out,))(file(*tensors))  # noqa: E731
    except MissingKernel:
        run = reference(path)
    fresh = inputs(model, (3, 2) if three else (5,), dtype, with_ids, 1)
    results = run([x.to(asked) if asked and x.is_floating_point() else x for x in fresh])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = model.training
    with torch.no_grad():
        expected = model.eval()(*fresh)
    model.train(training).load_state_dict(state)
    expected = list(expected.values()) if isinstance(expected, dict) else [expected]
    coarse = {asked} if asked else {p.dtype for p in model.parameters()} | {dtype}
    for truth, result in zip(expected, results, strict=True):
        if not truth.is_floating_point():
            assert torch.equal(truth, result)
            continue
        tolerance = tolerance_of(coarse | {truth.dtype}).at(truth.double().abs().max().item())
        assert (truth.double() - result.double()).abs().max().item() <= tolerance
