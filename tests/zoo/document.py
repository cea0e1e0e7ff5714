"""docs/zoo.md, written from the table of expectations."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import ZOO
from tests.zoo.expected import EXPECTED

PATH = Path(__file__).parents[2] / "docs" / "zoo.md"
HEAD = """# The zoo

What `noble_fx` finds in {count} architectures, built from tiny random configurations, with `select="all"` and rank 2.
Written by `python -m tests.zoo` from the table that `tests/test_zoo.py` holds.

For each row the test checks roles and reasons; that branches change the result; that `disabled` and `remove` give the
original's back, bit for bit; that gradients reach every parameter of every branch; that a saved model loads to the same
result. In the other captures it checks that U = 0 is the original, gradients, and that an untouched checkpoint loads;
with torch.compile, that the loss is the same. `make test` does the modules capture of all rows and the graphs of some;
`make test-long` the graphs of all.

**modules** reaches layers and known classes of experts, not products with bare parameters; **fx** declines what one
graph cannot hold, and **export** what no graph can: a dash, with the reason under the table.
Roles are those of the modules capture; `noble_fx/sites/roles.py` says what each means.

| architecture | modules | fx | export | roles of the sites | left out, and why |
|---|---:|---:|---:|---|---|
"""


def document() -> str:
    """The whole text."""
    refusals = [f"- {name}: {found.export_refuses}" for name, found in EXPECTED.items() if found.export_refuses]
    text = HEAD.format(count=len(ZOO)) + "\n".join(_row(entry.name) for entry in ZOO) + "\n"
    return text + ("\nWhy export declines:\n\n" + "\n".join(refusals) + "\n" if refusals else "")


def _row(name: str) -> str:
    found = EXPECTED[name]
    export = found.graphs.get("export")
    counts = [str(n or "–") for n in (found.modules, found.graphs.get("fx"), export)]
    return f"| {name} | {' | '.join(counts)} | {found.roles or '–'} | {found.left_out or '–'} |"
