"""How axes are cut into tiles: every channel in exactly one tile, and tied axes alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noble_fx.codegen.sigma.axes import UNIT, Axes, Segment


def covered(segments: list[Segment]) -> list[int]:
    return [channel for s in segments for channel in range(s.start, s.start + s.size)]


@given(size=st.integers(1, 600), widest=st.sampled_from([16, 64, 128]))
def test_every_channel_is_in_one_tile_that_holds_it(size, widest):
    axes = Axes(widest)
    axis = axes.new(size)
    axes.settle()
    segments = axes.segments(axis)
    assert covered(segments) == list(range(size))
    for segment in segments:
        assert segment.size <= segment.tile <= max(16, widest)
        assert segment.tile & (segment.tile - 1) == 0
        assert segment.padded == (segment.tile > segment.size)


@given(rank=st.integers(1, 200), pieces=st.integers(2, 4))
def test_a_chunked_axis_is_cut_where_its_parts_are(rank, pieces):
    axes = Axes(64)
    whole = axes.new(rank * pieces)
    parts = [axes.new(rank) for _ in range(pieces)]
    for at, part in enumerate(parts):
        axes.part(part, whole, at * rank, rank)
    for part in parts[1:]:
        axes.tie(parts[0], part)
    axes.settle()
    expected = [Segment(s.start + at * rank, s.size, s.tile) for at in range(pieces) for s in axes.segments(parts[0])]
    assert axes.segments(whole) == expected


def test_cuts_travel_through_ties_made_before_and_after():
    axes = Axes(128)
    a, b, c = axes.new(48), axes.new(48), axes.new(48)
    axes.tie(a, b)
    axes.part(axes.new(16), b, 0, 16)
    axes.tie(c, a)
    axes.settle()
    assert [s.size for s in axes.segments(c)] == [16, 32]


def test_an_axis_of_size_one_ties_with_anything():
    axes = Axes(128)
    axis = axes.new(20)
    assert axes.new(1) == UNIT
    assert axes.tie(UNIT, axis) == axis
    assert axes.tie(Axes.ROWS, UNIT) == Axes.ROWS
    assert axes.segments(UNIT) == [Segment(0, 1, 1)]


def test_rows_never_become_channels():
    axes = Axes(128)
    with pytest.raises(ValueError, match="rows"):
        axes.tie(axes.new(20), Axes.ROWS)


def test_a_wide_axis_is_walked_where_asked():
    axes = Axes(64)
    axis = axes.new(200)
    axes.settle(walk=True)
    assert axes.walked == 200
    (segment,) = axes.segments(axis)
    assert segment == Segment(0, 200, 64)
    assert segment.walked
    assert segment.padded
    assert not Segment(0, 256, 64).padded
    assert not Segment(0, 12, 16).walked


def test_pieces_of_one_size_are_walked_together():
    axes = Axes(64)
    whole, first, second = axes.new(384), axes.new(192), axes.new(192)
    axes.part(first, whole, 0, 192)
    axes.part(second, whole, 192, 192)
    axes.settle(walk=True)
    assert axes.walked == 192
    assert axes.segments(whole) == [Segment(0, 192, 64), Segment(192, 192, 64)]


@pytest.mark.parametrize("sizes", [[64], [12], [200, 100], [200, 12]])
def test_narrow_axes_and_axes_of_several_sizes_are_not_walked(sizes):
    axes = Axes(64)
    channels = [axes.new(size) for size in sizes]
    axes.settle(walk=True)
    assert axes.walked == 0
    for axis, size in zip(channels, sizes, strict=True):
        assert covered(axes.segments(axis)) == list(range(size))
        assert not any(segment.walked for segment in axes.segments(axis))
