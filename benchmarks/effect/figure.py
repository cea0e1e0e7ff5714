"""The finalists' held-out losses over their steps, as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.effect.plan import Records
from benchmarks.effect.report import standings

SHOWN_FROM = 0.3  # of the steps: the fall before would flatten everything after it


def draw(records: Records, tasks: dict[str, int], path: Path) -> None:
    """A panel for each task with its number of steps: the mean over seeds, a line an arm."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(tasks), 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    colours: dict[str, str] = {}  # an arm has the same in every panel
    for axes, (task, steps) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        for standing in standings(records, task, steps):
            wanted = (task, standing.arm, steps, standing.rate)
            runs = [record for run, record in records.items() if (run.task, run.arm, run.steps, run.lr) == wanted]
            at = runs[0]["at"]
            mean = [statistics.fmean(losses) for losses in zip(*(run["validation"] for run in runs), strict=True)]
            shown = [(step, loss) for step, loss in zip(at, mean, strict=True) if step >= SHOWN_FROM * steps]
            colour = colours.setdefault(standing.arm, f"C{len(colours)}")
            axes.plot(*zip(*shown, strict=True), color=colour, label=f"{standing.arm}, {standing.rate:g}")
        axes.set_title(task)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.supylabel("held-out loss [nats]")
    figure.savefig(path, metadata={"Date": None})
