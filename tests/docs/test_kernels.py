"""The page that reads a kernel quotes what is generated."""

import re

import noble_fx
from noble_fx import doctor
from noble_fx.codegen.plan import GENERATOR, MAX_RANK
from noble_fx.codegen.report.resources import TARGETS
from tests.pages import ROOT

PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_the_walk_goes_over_the_whole_kernel():
    """Each quoted block is in the text, in no other order than the page's, and no line of the body is passed over."""
    quoted = re.findall(r"^```triton\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    source = noble_fx.kernels("cosnet", in_features=1024, out_features=1024, rank=16).sources["bottleneck_forward"]
    assert all(block in source for block in quoted)
    body = source[source.index("    # the rows of this program") :]
    told = "".join(block for block in quoted if block in body)
    assert [line for line in told.splitlines() if line] == [line for line in body.splitlines() if line]


def test_every_kernel_is_told_of():
    names = noble_fx.kernels("cosnet", in_features=1024, out_features=1024, rank=16).sources
    cells = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    words = {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}
    starts, ends = [w[:-1] for w in words if w.endswith("…")], [w[1:] for w in words if w.startswith("…")]
    for name in names:
        assert name in words or name.startswith(tuple(starts)) or name.endswith(tuple(ends)), name


def test_variables_targets_and_limits_are_todays():
    assert set(re.findall(r"^\| `(NOBLE_FX_\w+)` \|", PAGE, re.MULTILINE)) == set(doctor.VARIABLES)
    assert f"{', '.join(list(TARGETS)[:-1])} and {list(TARGETS)[-1]}" in PAGE
    assert f"up to rank {MAX_RANK}" in PAGE
    assert f"kernels/g{GENERATOR}/" in PAGE
    assert f"`generator {GENERATOR}`" in PAGE
