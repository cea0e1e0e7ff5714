"""`noble-fx demo`: a byte-level GPT trained twice on this machine, plain and with branches, then saved and exported.

    text ─┬─ plain ByteGPT ──── train ─── its final validation loss
          └─ transform(ByteGPT) train ─── the step at which it reaches that loss
                 └─ checkpoint/, model.onnx: written, loaded again, compared with the live model

Both models start from the same base weights and see the same batches. Every figure shown is measured in this run and
written to `result.json`, the unflattering ones too.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import noble_fx
from noble_fx.demo import text as texts
from noble_fx.demo import training
from noble_fx.demo.byte_gpt import ByteGPT
from noble_fx.demo.result import MADE_BY, DemoResult, Run, as_json, comparison, draw, draw_sigma, print_files
from noble_fx.errors import NobleError
from noble_fx.files import staged
from noble_fx.onnx_export.session import OnnxModel
from noble_fx.report.sigma import values_of

DEFAULT_STEPS = 600
# The best rate of either, and the preset that is best with CosNet, in the study of the effect (docs/effect.md).
DEFAULT_LR = DEFAULT_NOBLE_LR = 4e-3
PRESET = "flat"
ONNX_TOLERANCE = 1e-4  # largest difference of logits between ONNX Runtime and the live model
SIGMA_SITE = "blocks.0.ffn.fc_in"  # whose σ is drawn
PROMPT = "def __init__(self"


def run_demo(
    folder: Path | str = Path("demo"),
    steps: int = DEFAULT_STEPS,
    lr: float | None = None,
    rank: int = 16,
    seed: int = 0,
    batch: int = 16,
    context: int = 128,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    console: Console | None = None,
) -> DemoResult:
    """Train both models, print the comparison, write `folder`, and check what was written by loading it again.

    `lr` is the peak learning rate of both; by default each model has its own best one.
    Raises `NobleError` when the extras are missing, when `folder` holds files of somebody else, when the loaded
    checkpoint is not bit for bit the live model, or when ONNX Runtime's logits differ by more than 1e-4.
    """
    lr, noble_lr = (DEFAULT_LR, DEFAULT_NOBLE_LR) if lr is None else (lr, lr)
    settings = {name: value for name, value in locals().items() if name not in ("folder", "console")}
    console, folder = console or Console(), Path(folder).resolve()
    if steps < 1:
        raise NobleError(f"steps={steps} must be at least 1")
    _require_extras()
    _check_replaceable(folder)
    text = _read_text()
    console.print(
        f"Byte-level GPT, {layers} layers of width {width}, on the source of Python's standard library: "
        f"{len(text.train_files)} files, {len(text.train) / 1e6:.1f} MB to learn from, "
        f"{len(text.validation_files)} files, {len(text.validation) / 1e6:.2f} MB to validate."
    )

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ByteGPT(width=width, layers=layers, heads=heads, context=context)

    def fit(name: str, model: nn.Module, lr: float) -> Run:
        groups = noble_fx.param_groups(model, lr=lr, weight_decay=0.1)
        with _progress(console, name, steps) as on_step:
            curve = training.train(model, groups, text, steps, batch, context, seed, on_step=on_step)
        return Run(**asdict(curve), parameters=sum(p.numel() for p in model.parameters()))

    plain = fit("plain", build(), lr)
    model = noble_fx.transform(build(), rank=rank, act="cosnet", preset=PRESET, seed=seed)
    start = _sigma(model)
    noble = fit("NOBLE", model, noble_lr)
    reached = training.steps_to_reach(noble, plain.final)
    console.print(comparison(plain, noble, reached, settings))
    sample = training.sample(model, PROMPT, length=200, context=context, seed=seed)
    console.print(f"NOBLE continues {PROMPT!r}:", style="bold")
    console.print(sample, markup=False, highlight=False, style="dim")

    windows = [inputs for inputs, _ in texts.validation_batches(text.validation, context, batch, count=1)]
    _check_replaceable(folder)  # again: minutes have passed
    with staged(folder, NobleError, overwrite=True) as work:
        new = work / folder.name
        new.mkdir()
        noble_fx.save(model, new / "checkpoint")
        noble_fx.export_onnx(model.eval(), (windows[0],), path=new / "model.onnx")
        noble_fx.explain(model).to_html(new / "report.html")
        draw_sigma(start, _sigma(model), SIGMA_SITE, new / "sigma.png")
        windows.append(windows[0][:1, : context // 2])  # another batch size and length than those exported
        exact, onnx = _differences(model, build(), new, windows)
        result = DemoResult(folder, settings, plain, noble, reached, exact, onnx, sample, SIGMA_SITE)
        draw(result, new / "loss.png")
        _write_result(result, new)
    print_files(console, result)
    return result


def _sigma(model: nn.Module) -> Tensor:
    """σ of one branch, a curve a channel [points, r]."""
    branch: Any = model.get_submodule(f"{SIGMA_SITE}.noble")
    return values_of(branch)


def _read_text() -> texts.Text:
    try:
        return texts.standard_library()
    except OSError as error:
        raise NobleError(f"the demo learns from the source of Python's standard library: {error}") from error


def _require_extras() -> None:
    wanted = ("matplotlib", "jinja2", "pygments", "onnx", "onnxscript", "onnxruntime")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise NobleError(f'the demo needs {", ".join(missing)}; install with: pip install "noble-fx[onnx,report]"')


# --- the folder ------------------------------------------------------------------------------------------------------


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace anything but an empty folder or one whose every file an earlier demo wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NobleError(f"{folder} is a file; choose another folder for the demo")
    try:
        recorded = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        ours = set(recorded["files"]) if recorded["made_by"] == MADE_BY else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    foreign = sorted(set(_files(folder)) - ours)
    if foreign:
        raise NobleError(
            f"{folder} holds files that the demo did not write ({', '.join(foreign[:3])}"
            f"{', …' if len(foreign) > 3 else ''}); choose another folder or move them away"
        )


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def _write_result(result: DemoResult, folder: Path) -> None:
    values = result.to_dict()
    values["files"] = sorted([*_files(folder), "result.json"])
    (folder / "result.json").write_text(as_json(values), encoding="utf-8")


# --- the checks ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _differences(model: nn.Module, fresh: nn.Module, folder: Path, inputs: list[Tensor]) -> tuple[float, float]:
    """Largest differences of logits: checkpoint to live model, ONNX Runtime to live model."""
    model.eval()
    loaded = noble_fx.load(fresh, folder / "checkpoint").eval()
    session = OnnxModel(folder / "model.onnx")
    live = [model(idx) for idx in inputs]
    exact = max(float((loaded(idx) - y).abs().max()) for idx, y in zip(inputs, live, strict=True))
    onnx = max(float((session(idx) - y).abs().max()) for idx, y in zip(inputs, live, strict=True))
    if exact != 0.0:
        raise NobleError(f"the loaded checkpoint's logits differ from the live model's by {exact:.2e}; expected 0")
    if not onnx <= ONNX_TOLERANCE:
        raise NobleError(
            f"ONNX Runtime's logits differ from the live model's by {onnx:.2e}, more than {ONNX_TOLERANCE:.0e}"
        )
    return exact, onnx


@contextmanager
def _progress(console: Console, name: str, steps: int) -> Iterator[Callable[[int, float], None]]:
    name_column, loss_column = TextColumn("{task.description:>6}"), TextColumn("loss {task.fields[loss]:.3f}")
    columns = (name_column, BarColumn(), MofNCompleteColumn(), loss_column, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, loss=float("nan"))
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)
