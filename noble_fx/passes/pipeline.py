"""The pipelines by purpose: the file to read first.

train     layer(x)                      expose_linear
       -> linear(x, w, b)               insert_branch
       -> linear(x, w, b) + noble(x)    fuse_branch
       -> noble_fx::linear(x, w, …)

base      noble_fx::linear(x, w, …)     drop_branch
       -> linear(x, w, b)
"""

from __future__ import annotations

from noble_fx.passes.drop_branch import drop_branch
from noble_fx.passes.expose_linear import expose_linear
from noble_fx.passes.fuse_branch import fuse_branch
from noble_fx.passes.insert_branch import insert_branch
from noble_fx.passes.rule import Rule

PIPELINES: dict[str, tuple[Rule, ...]] = {
    "train": (expose_linear, insert_branch, fuse_branch),
    "base": (drop_branch,),
}
