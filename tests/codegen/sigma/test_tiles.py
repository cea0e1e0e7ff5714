"""Tiles: how often they are written, how their channels are numbered, which lanes they hold."""

import pytest

from noble_fx.codegen.code import Code
from noble_fx.codegen.sigma.axes import LANE, Segment
from noble_fx.codegen.sigma.tiles import Loads, bound, channel_numbers, sides, solid, spread, tile_name
from noble_fx.codegen.source import Source

WHOLE, RAGGED, LATER, WALKED = Segment(0, 64, 64), Segment(0, 12, 16), Segment(128, 72, 128), Segment(0, 200, 64)


@pytest.mark.parametrize(("again", "writes"), [(False, 1), (True, 2)])
def test_loads_are_written_when_they_are_asked_for(again, writes):
    written = []

    def write(place):
        written.append(place)
        return Code.name("h")

    loads = Loads(write, again)
    assert [loads[(WHOLE,)], loads[(WHOLE,)]] == [Code.name("h")] * 2
    assert len(written) == writes


@pytest.mark.parametrize(
    ("segment", "rank", "name", "line"),
    [
        (WHOLE, 64, "channel", "channel = tl.arange(0, 64)"),
        (WHOLE, 100, "channel_0_64", "channel_0_64 = tl.arange(0, 64)"),
        (LATER, 200, "channel_128_200", "channel_128_200 = 128 + tl.arange(0, 128)"),
        (WALKED, 200, "channel", "channel = channel_tile * 64 + tl.arange(0, 64)"),
        (Segment(200, 200, 64), 200, "channel_200_400", "channel_200_400 = 200 + channel_tile * 64 + tl.arange(0, 64)"),
    ],
)
def test_channel_numbers_are_written_once(segment, rank, name, line):
    source = Source()
    assert [channel_numbers(source, segment, rank) for _ in range(2)] == [name, name]
    assert str(source) == f"{line}\n"


def test_only_padded_lanes_are_bounded():
    source = Source()
    assert not bound(source, WHOLE, 64)
    assert str(bound(source, RAGGED, 12, "[None, :]")) == "channel[None, :] < 12"
    assert str(bound(source, LATER, 200)) == "channel_128_200 < 200"
    assert str(bound(source, WALKED, 200)) == "channel < 200"
    assert not bound(source, Segment(0, 256, 64), 256)


def test_shapes_and_names():
    assert sides((WHOLE, RAGGED)) == "64, 16"
    assert [spread((WHOLE,), 0), spread((WHOLE, RAGGED), 0), spread((WHOLE, RAGGED), 1)] == [
        "",
        "[:, None]",
        "[None, :]",
    ]
    assert [tile_name("h", WHOLE, [WHOLE]), tile_name("h", LATER, [WHOLE, LATER])] == ["h", "h_c128"]


def test_only_a_number_is_filled_in():
    assert str(solid(Code.number(1.5), (WHOLE, LANE))) == "tl.full([64, 1], 1.5, tl.float32)"
    assert str(solid(Code.number(1.5), ())) == "tl.full([], 1.5, tl.float32)"
    assert str(solid(Code.name("h"), (WHOLE,))) == "h"
