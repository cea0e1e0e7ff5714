"""What the terminal shows, as golden files: `pytest tests/explaining --refresh-expected` writes them."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import noble_fx
from noble_fx.explaining.graphs import GraphAccount
from noble_fx.explaining.terminal import NARROW, Report, head, history
from noble_fx.tables import as_text
from tests.models import tiny, transformed

FOLDER = Path(__file__).parent / "expected"
MODELS = {
    "plain": lambda: transformed("fx"),
    "eager": lambda: noble_fx.transform(tiny(), rank=4, rank_pattern={r"blocks\.1\.fc1": 2}, fuse=False),
    "untransformed": lambda: tiny(width=80),
}


@pytest.mark.parametrize("width", [60, 110])
@pytest.mark.parametrize("name", MODELS)
def test_golden_text(name, width, request):
    pytest.importorskip("triton")
    text = as_text(noble_fx.explain(MODELS[name]()), width) + "\n"
    file = FOLDER / f"{name}_{width}.txt"
    if request.config.getoption("--refresh-expected"):
        file.write_text(text, encoding="utf-8")
    assert max(map(len, text.splitlines())) <= width
    assert text == file.read_text(encoding="utf-8"), f"{file.name} has changed; read the diff after --refresh-expected"


def shown(**settings) -> str:
    console = Console(file=io.StringIO(), width=NARROW, **settings)
    console.print(noble_fx.explain(transformed("modules", fuse=False)))
    return console.file.getvalue()


def test_colours_only_where_they_are_wanted(monkeypatch):
    terminal = {"force_terminal": True, "color_system": "standard"}
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in shown(**terminal)
    assert "\x1b" not in shown(force_terminal=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in shown(**terminal)


def test_a_way_that_was_measured_is_told():
    account = noble_fx.explain(transformed("modules"))
    asked = {"forward, 64 rows or fewer, H200": "vendor"}
    kernel = replace(account.kernels[0], sites=12, chosen=asked)
    lines = head(replace(account, kernels=(kernel,)))
    assert "measured for 16 → 16, rank 4, cosnet, float32 ×12:" in lines
    assert "  forward, 64 rows or fewer, H200: vendor" in lines
    assert not any("the fastest one is measured" in line for line in lines)


def test_many_operators_are_not_all_told():
    graph = GraphAccount("eval", 99, (), {f"old{i}": 1 for i in range(20)}, {"new": 3}, (), ())
    lines = list(history([graph]))
    assert lines[:3] == ["the graph of mode 'eval':", "operators: 20 before, 3 after", "  old0: 1 → 0"]
    assert lines[-1] == "  and 9 more"


def test_a_report_takes_any_account():
    assert as_text(Report(noble_fx.explain(tiny()))).startswith("Tiny: 0 of 13 linear maps carry a branch\nnot transf")


def test_blocks_are_counted_as_blocks():
    explained = noble_fx.explain(noble_fx.transform(tiny(), rank=4, scope="block"))
    title, _, flops, *_ = head(explained)
    assert title == "Tiny: 2 of 2 blocks carry a branch"
    assert (explained.base_flops, explained.branch_flops) == (0, 2 * 2 * (4 * 32 + 16))
    assert flops == "FLOPs a token or row: 576 in branches; those of the blocks are not counted"
