"""Draw every activation: `python docs/tools/plots.py` writes `docs/images/activations/NAME.svg`.

A picture is σ along one line through the bottleneck, h = s (1, …, 1) with -5 ≤ s ≤ 5, as the modules themselves compute
it: channels of a σ whose channels are alike are one curve, else the first three of r = 16 are drawn. Horizontal is s,
vertical σ from -2.5 to 2.5, one unit 20 points. Seed 0, preset "paper". There is no background, and the colours are of
a middle lightness, so that a picture is readable on a light page and on a dark one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from noble_fx.branches.activations import activation_names, build_activation
from noble_fx.config import PRESETS

FOLDER = Path(__file__).parents[1] / "images" / "activations"
RANK, POINTS, UNIT = 16, 101, 20
WIDTH, HEIGHT = 10 * UNIT, 5 * UNIT
COLOURS = ("#0d9488", "#d97706", "#8b5cf6")
AXES = f'<path d="M0 {HEIGHT // 2}H{WIDTH}M{WIDTH // 2} 0V{HEIGHT}" stroke="#888" stroke-width=".7"/>'


def curves(name: str) -> torch.Tensor:
    """σ along the line, [curves, points]."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        act = build_activation(name, RANK, PRESETS["paper"]).double()
        s = torch.linspace(-5, 5, POINTS, dtype=torch.float64)
        values = act(s[:, None].expand(-1, RANK))[:, : len(COLOURS)].T
    return values[:1] if torch.equal(values, values[:1].expand_as(values)) else values


def places(values: torch.Tensor) -> list[list[tuple[float, float]]]:
    """The points of each curve in the picture, x to the right and y down, just outside of it where σ is."""
    y = (HEIGHT / 2 - UNIT * values).clamp(-UNIT, HEIGHT + UNIT)
    return [[(i * WIDTH / (POINTS - 1), float(v)) for i, v in enumerate(curve)] for curve in y]


def picture(name: str) -> str:
    """The SVG of one activation."""
    lines = []
    for points, colour in zip(places(curves(name)), COLOURS, strict=False):
        path = " ".join(f"{x:g},{round(y, 1):g}" for x, y in points)
        lines.append(f'<polyline points="{path}" stroke="{colour}" stroke-width="2"/>')
    body = "\n".join([AXES, *lines])
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" fill="none">\n{body}\n</svg>\n'


def write() -> None:
    """All pictures, into the folder of the page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in activation_names():
        (FOLDER / f"{name}.svg").write_text(picture(name), encoding="utf-8")


if __name__ == "__main__":
    write()
