"""Writes docs/zoo.md, prints what is found, or the times; see the package."""

from __future__ import annotations

import sys
import time

import torch

import noble_fx
from tests.zoo import BY_NAME, ZOO, transform_entry
from tests.zoo.document import PATH, document
from tests.zoo.entry import Entry, left_out_of, roles_of


def found(entry: Entry) -> str:
    """The line of `expected.py` for what is found today."""
    graphs, refused, words = {}, "", ['""', '""']
    for capture in ("modules", "fx", "export"):
        torch.manual_seed(0)
        try:
            sites = noble_fx.sites(transform_entry(entry, capture, entry.build().eval()))
        except (noble_fx.CaptureError, noble_fx.ConfigError) as error:
            refused = str(error) if capture == "export" else ""
            continue
        if capture == "modules":
            words = [f'"{roles_of(sites)}"', f'"{left_out_of(sites)}"']
        else:
            graphs[capture] = sum(site.selected for site in sites)
    said = f", {refused!r}" if refused else ""
    return f"    {entry.name!r}: Found({', '.join(words)}, {graphs}{said}),"


def print_times() -> None:
    """Seconds of CPU of everything that `tests/test_zoo.py` does with each architecture."""
    from tests.test_zoo import CHECKS

    torch.set_num_threads(1)  # as in the tests
    ZOO[0].build()  # imports transformers
    for name, check, entries in CHECKS:
        for entry in entries:
            start = time.process_time()
            check(entry)
            print(f"{time.process_time() - start:6.1f} s  {name}  {entry.name}", flush=True)


if __name__ == "__main__":
    if "--times" in sys.argv[1:]:
        print_times()
    elif "--found" in sys.argv[1:]:
        for name in sys.argv[2:] or BY_NAME:
            print(found(BY_NAME[name]), flush=True)
    else:
        PATH.write_text(document(), encoding="utf-8")
        print(PATH)
