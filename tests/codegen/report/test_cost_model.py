"""The cost of each way on paper: against the kernels' own counts, and the table in docs/ways.md."""

from pathlib import Path

import pytest
import torch

import noble_fx
from noble_fx.codegen.report.cost_model import (
    B200,
    GAP,
    GPUS,
    H100,
    Gpu,
    Launch,
    Shape,
    backward_input,
    cost_table,
    forward,
    plain_seconds,
    seconds,
)

SHAPE = Shape(16_384, 2048, 1024, 64)


@pytest.mark.parametrize("act", ["identity"])
def test_the_paper_counts_what_the_generator_counts(act):
    """FLOPs and bytes of every kernel, but for σ's own tensors, of which the identity has none."""
    kernels = noble_fx.kernels(
        act, in_features=2048, out_features=1024, rank=64, dtype=torch.bfloat16, bias=False
    ).kernels
    launches = [launch for ways in (forward(SHAPE), backward_input(SHAPE)) for way in ways.values() for launch in way]
    ours = {launch.name: launch for launch in launches if launch.name in kernels}
    assert len(ours) == 8
    for name, launch in ours.items():
        kernel = kernels[name]
        assert launch.flops == SHAPE.rows * kernel.flops_per_row, name
        assert launch.bytes == SHAPE.rows * kernel.bytes_per_row + kernel.bytes_once, name


def test_launches_and_products_of_each_way():
    ways = forward(SHAPE)
    assert {name: len(way) for name, way in ways.items()} == {
        "vendor": 3,
        "kernel": 2,
        "descriptors": 2,
        "branch first": 2,
    }
    assert len({sum(launch.flops for launch in way) for way in ways.values()}) == 1  # one formula
    written = {name: sum(launch.bytes for launch in way) for name, way in ways.items()}
    assert written["kernel"] == written["descriptors"] < written["branch first"] < written["vendor"]


def test_a_launch_is_as_long_as_its_longer_part():
    gpu = Gpu("round", bandwidth=1e12, gemm=1e15)
    assert Launch("", flops=10**12, bytes=1).seconds(gpu) == pytest.approx(1e-3 + GAP)
    assert Launch("", flops=1, bytes=10**9).seconds(gpu) == pytest.approx(1e-3 + GAP)
    assert Launch("", 9 * 10**11, 1, "pointers").seconds(gpu) == pytest.approx(1e-3 + GAP)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_branch_is_never_free(gpu):
    for way in forward(SHAPE).values():
        assert seconds(way, gpu) > plain_seconds(SHAPE, gpu)


def test_one_accumulation_wins_where_the_product_is_shallow_and_branch_first_where_it_is_deep():
    def best(shape, *names):
        ways = forward(shape)
        return min(names, key=lambda name: seconds(ways[name], H100))

    names = "vendor", "kernel", "branch first"
    assert best(Shape(16_384, 1024, 1024, 16), *names) == "kernel"
    assert best(Shape(16_384, 4096, 4096, 64), *names) == "branch first"


def test_what_is_assumed_is_said():
    assert not H100.assumed
    assert "nominal" in B200.assumed
    assert backward_input(Shape(16_384, 1024, 1024, 256)) == {}


def test_the_table_of_the_docs_is_this_one():
    page = (Path(__file__).parents[3] / "docs" / "ways.md").read_text(encoding="utf-8")
    for row in cost_table():
        assert f"| {' | '.join(row)} |" in page
