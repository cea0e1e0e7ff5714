"""What compression costs a model, by method and size; and what it saves, by rows.

    python -m benchmarks compress compress_speed

compress         two byte GPTs trained here (4 × 128, plain and with branches) on the standard library's source; the
                 perplexity of held-out files, a byte, of each method at each share of the parameters of the block's
                 linears. All calibrated on the same 64 windows of training files.
compress_speed   a GPT-2 and a Llama of transformers with random weights, two blocks of each: ONNX Runtime's time of
                 each size beside the plain model's, in turns, at a decoder's one token for 1 to 16 sequences and at a
                 prompt. Each size with and without branches, and those with branches also with matrices apart.

fasterai's FC_Decomposer stands beside, where it is installed: its data-free SVD, given the rank of the same size, since
its own "percent removed" counts singular values; its diagonal scaling asks for inputs [rows, K] and fails on tokens.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import noble_fx
from benchmarks.onnx import version
from noble_fx.demo.byte_gpt import ByteGPT
from noble_fx.demo.text import Text, batch_at, standard_library, validation_batches
from noble_fx.demo.training import mean_loss, train
from noble_fx.interleaved import interleave, machine
from noble_fx.runtime import OnnxModel

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
STEPS, RATE, CONTEXT = 2000, 4e-3, 128

METHODS: dict[str, dict[str, Any]] = {
    "activations": {"method": "activations"},
    "activations, uniform": {"method": "activations", "allocate": "uniform"},
    "activations, by block": {"method": "activations", "sequential": "block"},
    "diagonal": {"method": "diagonal", "allocate": "uniform"},
    "svd": {"method": "svd", "allocate": "uniform"},
    "welore": {"method": "welore"},
    "saes": {"method": "saes", "allocate": "uniform"},
}


def run(rounds: int = 1) -> dict[str, object]:
    """Every method at every size, of both models; prints a table and returns every figure."""
    text = standard_library()
    held_out = validation_batches(text.validation, CONTEXT, 16, count=32)
    calibration = [batch_at(text.train, 10**6 + at, 1, 16, CONTEXT)[0] for at in range(4)]
    figures = []
    for name, model in trained(text):
        figures.append({"model": name, "method": "none", "keep": 1.0, "perplexity": perplexity(model, held_out)})
        for method, compressed in variants(model, calibration):
            for keep in SHARES:
                small = compressed(keep)
                figure = {"model": name, "method": method, "keep": keep, **_size(small)}
                figures.append({**figure, "perplexity": perplexity(small, held_out)})
    Console(width=120).print(_table(figures))
    return {"machine": machine(), "steps": STEPS, "fasterai": _fasterai_version(), "figures": figures}


def trained(text: Text) -> Iterator[tuple[str, nn.Module]]:
    """The plain model, and one with branches, each after the same steps."""
    for name in ("plain", "with branches"):
        torch.manual_seed(0)
        model: nn.Module = ByteGPT()
        if name != "plain":
            model = noble_fx.transform(model, rank=16, preset="flat", seed=0)
        train(model, noble_fx.param_groups(model, RATE, weight_decay=0.1), text, STEPS)
        yield name, model.eval()


def variants(model: nn.Module, calibration: list[Tensor]) -> Iterator[tuple[str, Callable[[float], nn.Module]]]:
    """What makes a copy of so large a share of the parameters, by method."""
    for name, settings in METHODS.items():
        yield name, lambda keep, s=settings: noble_fx.compress(model, calibration, keep=keep, progress=False, **s)
    decomposer = _fasterai()
    if decomposer is not None and not any(".noble." in name for name, _ in model.named_parameters()):
        yield "fasterai, SVD", lambda keep: _decomposed(decomposer, model, keep)


def perplexity(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Of a byte."""
    return math.exp(mean_loss(model, batches))


def _size(model: nn.Module) -> dict[str, int]:
    return {"params": sum(parameter.numel() for parameter in model.parameters())}


def _fasterai() -> Any:
    """Its FC_Decomposer, or None; read by itself, since the package imports fastai, which nothing here needs."""
    spec = importlib.util.find_spec("fasterai")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "misc" / "fc_decomposer.py"
    own = importlib.util.spec_from_file_location("fc_decomposer", file)
    assert own is not None
    assert own.loader is not None
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    return module.FC_Decomposer()


def _fasterai_version() -> str | None:
    return importlib.metadata.version("fasterai") if importlib.util.find_spec("fasterai") else None


def _decomposed(decomposer: Any, model: nn.Module, keep: float) -> nn.Module:
    """The chosen layers by fasterai, each at the rank that takes `keep` of its parameters."""
    small = copy.deepcopy(model)
    for site in noble_fx.sites(model, rank=1):
        if site.selected:
            n, k = site.out_features, site.in_features
            rank = int(keep * n * k / (n + k))
            layer: Any = small.get_submodule(site.fqn)
            removed = 1 - (rank + 0.5) / min(n, k)  # it rounds down
            parent, _, name = site.fqn.rpartition(".")
            setattr(small.get_submodule(parent), name, decomposer.SVD(layer, removed))
    return small.eval()


def _table(figures: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("perplexity of a byte at")
    for keep in (1.0, *SHARES):
        table.add_column(f"{keep:.0%}", justify="right")
    rows: dict[tuple[str, str], dict[float, float]] = {}
    for figure in figures:
        rows.setdefault((figure["model"], figure["method"]), {})[figure["keep"]] = figure["perplexity"]
    for (model, method), found in rows.items():
        shown = [f"{found[keep]:.3f}" if keep in found else "" for keep in (1.0, *SHARES)]
        table.add_row(f"{model}: {method}", *shown)
    return table


# --- time ------------------------------------------------------------------------------------------------------------

SIZES = (0.7, 0.5, 0.3)
INPUTS = {"1 × 1": (1, 1), "4 × 1": (4, 1), "16 × 1": (16, 1), "1 × 512": (1, 512)}


def run_speed(rounds: int = 16) -> dict[str, object]:
    """Every size of both architectures in ONNX Runtime, one thread; prints a table and returns every figure."""
    figures: list[dict[str, Any]] = []
    table = Table(box=None, header_style="bold")
    for column in ("model", "input", "plain", *_forms()):
        table.add_column(column, justify="left" if column in ("model", "input") else "right")
    for name, model in architectures().items():
        with tempfile.TemporaryDirectory() as folder:
            sessions = _sessions(model, Path(folder))
            for shape, size in INPUTS.items():
                idx = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0))
                calls = {form: (lambda s=session, x=idx: s(x)) for form, session in sessions.items()}
                timings = {t.name: t for t in interleave(calls, "plain", rounds, warmup=2)}
                figures.append({"model": name, "input": shape, "timings": list(map(asdict, timings.values()))})
                shown = [f"{1 + timings[form].overhead:.2f}" for form in _forms()]
                table.add_row(name, shape, f"{timings['plain'].milliseconds:.1f} ms", *shown)
    Console(width=160).print(table)
    return {"machine": {**machine(), "onnxruntime": version(), "threads": 1}, "rounds": rounds, "figures": figures}


def architectures() -> dict[str, nn.Module]:
    """Two blocks each, of random weights, without a head."""
    from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

    torch.manual_seed(0)
    gpt2 = GPT2Model(GPT2Config(vocab_size=256, n_layer=2, use_cache=False))
    llama = LlamaConfig(
        vocab_size=256,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=8,
        use_cache=False,
    )
    return {"GPT-2, 2 × 768": gpt2.eval(), "Llama, 2 × 1024": LlamaModel(llama).eval()}


def _forms() -> list[str]:
    return [*(f"{size:.0%}" for size in SIZES), "r 64", *(f"{size:.0%}, r 64" for size in SIZES), "50%, r 64, apart"]


def _sessions(model: nn.Module, folder: Path) -> dict[str, Any]:
    """A session of each form; with branches, W and U, or A and U, are one matrix but for the last form."""
    sessions = {}
    for form in ("plain", *_forms()):
        made = model
        if "%" in form:
            keep = int(form.partition("%")[0]) / 100
            settings = {"keep": keep, "method": "svd", "allocate": "uniform", "progress": False}
            made = noble_fx.compress(made, **settings)
        if "r 64" in form:
            made = noble_fx.transform(copy.deepcopy(made), rank=64, preset="flat", seed=0)
        path = folder / f"{len(sessions)}.onnx"
        join = False if "apart" in form else "auto"
        example = {"input_ids": torch.randint(0, 256, (2, 8))}
        noble_fx.export_onnx(made.eval(), (), path, kwargs=example, join=join, verify=False)
        sessions[form] = OnnxModel(path, device="cpu", threads=1)
    return sessions
