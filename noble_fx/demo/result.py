"""What the demo measured, and how it is shown: `result.json`, the table, the plot, the list of files.

Every figure is measured in the run that shows it, the unflattering ones too.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from noble_fx.demo.training import Curve
from noble_fx.report.sigma import CHANNELS, REACH

MADE_BY = "noble-fx demo"


@dataclass
class Run(Curve):
    """One training run: its curve and the model's parameter count."""

    parameters: int = 0

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
    sigma_site: str

    @property
    def ratio(self) -> float | None:
        """Steps of the plain model over steps of NOBLE to the same loss; None if NOBLE never reached it."""
        return None if self.reached is None else self.plain.steps[-1] / self.reached

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the versions that produced them."""
        values = asdict(self)
        del values["folder"]
        return {"made_by": MADE_BY, **values, "ratio": self.ratio, "environment": environment()}


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
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda line: " ".join(line[0].split()), json.dumps(values, indent=2)) + "\n"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    return model[1] if model else platform.processor() or platform.machine()


def comparison(plain: Run, noble: Run, reached: float | None, settings: dict[str, Any]) -> Table:
    """Both runs side by side, and what NOBLE took to reach the plain model's final loss."""
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


def draw(result: DemoResult, path: Path) -> None:
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


def draw_sigma(before: Tensor, after: Tensor, site: str, path: Path) -> None:
    """Some channels of one σ [points, r], as it was drawn and after training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    h = torch.linspace(-REACH, REACH, len(before))
    for axes, values, when in ((left, before, "as drawn"), (right, after, "after training")):
        axes.plot(h, values[:, :CHANNELS])
        axes.set_title(when)
        axes.set_xlabel("h, the same in every channel")
        axes.grid(alpha=0.3)
    left.set_ylabel("σ(h)")
    figure.suptitle(f"The first {min(CHANNELS, before.shape[1])} channels of σ beside {site}")
    figure.savefig(path, dpi=120)


def print_files(console: Console, result: DemoResult) -> None:
    """What was written, each with what checking it showed."""
    folder = result.folder
    console.print("Written, loaded again, compared with the live model on validation text:", style="bold")
    for name, remark in (
        ("checkpoint/", f"logits differ by {result.checkpoint_difference:g}"),
        ("model.onnx", f"logits of ONNX Runtime differ by at most {result.onnx_difference:.1e}"),
        ("report.html", "open it in a browser: layers, cost, graphs before and after, kernels"),
        ("loss.png", "both curves"),
        ("sigma.png", f"one σ, before and after: {result.sigma_site}"),
        ("result.json", "every figure above, settings and versions"),
    ):
        console.print(f"  {folder.name}/{name:<12} {remark}", markup=False, highlight=False, soft_wrap=True)
