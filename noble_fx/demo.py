"""The demo: the same byte-level GPT trained twice on this machine, plain and with branches, then saved and exported.

    text ─┬─ plain ByteGPT ──── train ─── its final validation loss
          └─ transform(ByteGPT) train ─── the step at which it reaches that loss
                 └─ checkpoint/, model.onnx: written, loaded again, compared with the live model

Both models start from the same base weights and see the same batches. Every figure shown is measured in this run and
written to `result.json`, the unflattering ones too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

import noble_fx
from noble_fx.errors import NobleError
from noble_fx.files import staged
from noble_fx.onnx_export.session import OnnxModel

DEFAULT_STEPS = 750
# Each model's best of 1e-3, 2e-3, 4e-3, 8e-3 over 1,000 steps (benchmarks/demo_ratio.py). NOBLE's lies lower, since its
# multipliers let the branches learn up to five times faster than the base.
DEFAULT_LR, DEFAULT_NOBLE_LR = 8e-3, 4e-3
ONNX_TOLERANCE = 1e-4  # largest difference of logits between ONNX Runtime and the live model
PROMPT = "def __init__(self"
_MADE_BY = "noble-fx demo"


@dataclass
class Run:
    """One training run: parameter count, and losses in nats per byte after so many steps."""

    parameters: int
    steps: list[int]
    validation: list[float]
    train: list[float]
    seconds_per_step: float

    @property
    def final(self) -> float:
        """The validation loss after the last step."""
        return self.validation[-1]


@dataclass
class DemoResult:
    """What the demo measured; `to_dict` is what `result.json` holds."""

    folder: Path
    settings: dict[str, Any]
    plain: Run
    noble: Run
    reached: float | None  # NOBLE's step at the plain model's final loss; None if never
    checkpoint_difference: float  # of logits, after loading
    onnx_difference: float
    sample: str

    @property
    def ratio(self) -> float | None:
        """Steps of the plain model over steps of NOBLE to the same loss; None if NOBLE never reached it."""
        return None if self.reached is None else self.plain.steps[-1] / self.reached

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the versions that produced them."""
        values = asdict(self)
        del values["folder"]
        return {"made_by": _MADE_BY, **values, "ratio": self.ratio, "environment": environment()}


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
    gpt, data = load_example("byte_gpt"), load_example("train_bytes")
    text = _read_text(data)
    console.print(
        f"Byte-level GPT, {layers} layers of width {width}, on the source of Python's standard library: "
        f"{len(text.train_files)} files, {len(text.train) / 1e6:.1f} MB to learn from, "
        f"{len(text.validation_files)} files, {len(text.validation) / 1e6:.2f} MB to validate."
    )

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return gpt.ByteGPT(width=width, layers=layers, heads=heads, context=context)

    def fit(name: str, model: nn.Module, lr: float) -> Run:
        groups = noble_fx.param_groups(model, lr=lr, weight_decay=0.1)
        with _progress(console, name, steps) as on_step:
            curve = data.train(model, groups, text, steps, batch, context, seed, on_step=on_step)
        return Run(sum(p.numel() for p in model.parameters()), **asdict(curve))

    plain = fit("plain", build(), lr)
    model = noble_fx.transform(build(), rank=rank, act="cosnet", seed=seed)
    noble = fit("NOBLE", model, noble_lr)
    reached = data.steps_to_reach(noble, plain.final)
    console.print(_table(plain, noble, reached, settings))
    sample = data.sample(model, PROMPT, length=200, context=context, seed=seed)
    console.print(f"NOBLE continues {PROMPT!r}:", style="bold")
    console.print(sample, markup=False, highlight=False, style="dim")

    windows = [inputs for inputs, _ in data.validation_batches(text.validation, context, batch, count=1)]
    _check_replaceable(folder)  # again: minutes have passed
    with staged(folder, NobleError, overwrite=True) as work:
        new = work / folder.name
        new.mkdir()
        noble_fx.save(model, new / "checkpoint")
        noble_fx.export_onnx(model.eval(), (windows[0],), path=new / "model.onnx")
        (new / "explain.txt").write_text(str(noble_fx.explain(model)) + "\n", encoding="utf-8")
        windows.append(windows[0][:1, : context // 2])  # another batch size and length than those exported
        exact, onnx = _differences(model, build(), new, windows)
        result = DemoResult(folder, settings, plain, noble, reached, exact, onnx, sample)
        _draw(result, new / "loss.png")
        _write_result(result, new)
    _print_files(console, result)
    return result


def _read_text(data: ModuleType) -> Any:
    try:
        return data.standard_library()
    except OSError as error:
        raise NobleError(f"the demo learns from the source of Python's standard library: {error}") from error


def load_example(name: str) -> ModuleType:
    """The module `examples/<name>.py`: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    for folder in (package / "examples", package.parent / "examples"):
        if (path := folder / f"{name}.py").is_file():
            break
    else:
        raise NobleError(
            f"examples/{name}.py is neither inside {package} nor beside it; "
            "reinstall noble-fx, or run from a checkout of its repository"
        )
    full_name = f"noble_fx.examples.{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[full_name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up here
        spec.loader.exec_module(module)
    return sys.modules[full_name]


def environment() -> dict[str, Any]:
    """What the figures depend on besides the settings: versions, processor, threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "noble_fx": importlib.metadata.version("noble-fx"),
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
    }


def as_json(values: dict[str, Any]) -> str:
    """Indented JSON with every innermost list on one line, so that curves of many numbers stay readable."""
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), json.dumps(values, indent=2)) + "\n"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _require_extras() -> None:
    missing = [m for m in ("matplotlib", "onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(m) is None]
    if missing:
        raise NobleError(f'the demo needs {", ".join(missing)}; install with: pip install "noble-fx[onnx,report]"')


# --- the folder ------------------------------------------------------------------------------------------------------


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace anything but an empty folder or one whose every file an earlier demo wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NobleError(f"{folder} is a file; choose another folder for the demo")
    found = _files(folder)
    try:
        recorded = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        ours = set(recorded["files"]) if recorded["made_by"] == _MADE_BY else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    foreign = sorted(set(found) - ours)
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


# --- what is shown ---------------------------------------------------------------------------------------------------


@contextmanager
def _progress(console: Console, name: str, steps: int) -> Iterator[Any]:
    name_column, loss_column = TextColumn("{task.description:>6}"), TextColumn("loss {task.fields[loss]:.3f}")
    columns = (name_column, BarColumn(), MofNCompleteColumn(), loss_column, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, loss=float("nan"))
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)


def _table(plain: Run, noble: Run, reached: float | None, settings: dict[str, Any]) -> Table:
    steps, more = plain.steps[-1], noble.parameters / plain.parameters - 1
    slower = noble.seconds_per_step / plain.seconds_per_step - 1
    table = Table("", "plain", "NOBLE", "", title=f"{steps} steps each, same base weights, same batches")
    for column in table.columns[1:3]:
        column.justify = "right"
    table.add_row("peak learning rate", f"{settings['lr']:g}", f"{settings['noble_lr']:g}", "")
    table.add_row("parameters", f"{plain.parameters:,}", f"{noble.parameters:,}", f"{more:+.1%}")
    difference = f"{noble.final - plain.final:+.4f}"
    table.add_row("final validation loss, nats/byte", f"{plain.final:.4f}", f"{noble.final:.4f}", difference)
    pace = f"{plain.seconds_per_step:.3f}", f"{noble.seconds_per_step:.3f}"
    table.add_row("seconds per step, here", *pace, f"{slower:+.0%}")
    total = plain.seconds_per_step * steps
    if reached is None:
        shown, verdict, spent, cost = "–", f"not reached in {steps} steps", "–", ""
    else:
        shown, verdict = f"{reached:.0f}", f"{steps / reached:.2f}× fewer steps"
        spent, cost = f"{noble.seconds_per_step * reached:.0f}", f"{noble.seconds_per_step * reached / total - 1:+.0%}"
    table.add_row(f"steps to loss {plain.final:.4f}", f"{steps}", shown, verdict)
    table.add_row("training seconds to that loss", f"{total:.0f}", spent, cost)
    return table


def _draw(result: DemoResult, path: Path) -> None:
    """Both validation curves, the plain model's final loss, and where NOBLE reaches it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure of its own rather than pyplot: the caller's backend and open figures stay as they are.
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    plain, noble, s = result.plain, result.noble, result.settings
    axes.plot(plain.steps, plain.validation, color="tab:gray", label=f"plain, {plain.parameters:,} parameters")
    axes.plot(noble.steps, noble.validation, color="tab:blue", label=f"NOBLE, {noble.parameters:,} parameters")
    axes.axhline(plain.final, color="tab:gray", linestyle=":", label=f"plain's final loss {plain.final:.4f}")
    if result.reached is not None:
        label = f"reached at step {result.reached:.0f}: {result.ratio:.2f}× fewer steps"
        axes.plot([result.reached], [plain.final], "o", color="tab:red", label=label)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("validation loss [nats per byte]")
    # The fall of the first steps would flatten everything after it.
    shown = [loss for run in (plain, noble) for loss in run.validation[len(run.validation) // 8 :]]
    margin = 0.05 * (max(shown) - min(shown)) or 0.01
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_title(
        f"ByteGPT {s['layers']}×{s['width']}, rank {s['rank']}, lr {s['lr']:g} and {s['noble_lr']:g}, seed {s['seed']}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _print_files(console: Console, result: DemoResult) -> None:
    folder = result.folder
    console.print("Written, loaded again, compared with the live model on validation text:", style="bold")
    for name, remark in (
        ("checkpoint/", f"logits differ by {result.checkpoint_difference:g}"),
        ("model.onnx", f"logits of ONNX Runtime differ by at most {result.onnx_difference:.1e}"),
        ("explain.txt", "every site, its rank and its cost"),
        ("loss.png", "both curves"),
        ("result.json", "every figure above, settings and versions"),
    ):
        console.print(f"  {folder.name}/{name:<12} {remark}", markup=False, highlight=False, soft_wrap=True)
