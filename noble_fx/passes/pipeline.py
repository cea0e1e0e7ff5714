"""The pipelines by purpose: the file to read first.

train     layer(x)                      expose_linear
          addmm(b, x, wᵀ), matmul, …    expose_product
       -> linear(x, w, b)               insert_branch
          conv 1×1, bmm, einsum, …      insert_channel_branch, insert_expert_branch, insert_einsum_branch
          block_branch(x, block)        insert_block_branch, drop_block_place
       -> linear(x, w, b) + noble(x)    fuse_branch
       -> noble_fx::linear(x, w, …)     share_input
       -> noble_fx::linear_group(x, [w, …], …) where several sites read x

compiled  Dynamo's graphs, where a fused site is one noble_fx::linear already: share_input

base      noble_fx::linear(x, w, …),    drop_branch
          noble_fx::linear_group(x, [w, …], …)
          y + block_branch(x, block)    drop_block_place
       -> linear(x, w, b)

inference noble_fx::linear(x, w, …)     fold_branch       over the folded branches of `noble_fx.fold`
       -> the same, ω and φ in D and M

export    noble_fx::linear(x, w, …)     merge_branch      on a graph of its own, made by torch.export
       -> joined_up(x, [W U], …)        join_up           `join="down"`: join_down, [W; D]; `join=False`: neither
          factorized_linear(x, B, A, …) join_factorized
       -> joined_factorized(x, [B; D], [A U], …)
                                        remove_dead       the cleanup

rows      view(f(view(x)))              sink_view         on the same graph in aten operators, until it is stable
       -> f(x)                          merge_view

Each pass shows its rewrite on a small model (`passes/example.py`), which `passes/check.py` runs.
"""

from __future__ import annotations

from noble_fx.passes.expose.expose_linear import expose_linear
from noble_fx.passes.expose.expose_product import expose_product
from noble_fx.passes.fuse.fuse_branch import fuse_branch
from noble_fx.passes.fuse.share_input import share_input
from noble_fx.passes.fuse.split_group import split_group
from noble_fx.passes.inference.fold_branch import fold_branch
from noble_fx.passes.inference.join_down import join_down
from noble_fx.passes.inference.join_factorized import join_factorized
from noble_fx.passes.inference.join_up import join_up
from noble_fx.passes.inference.merge_branch import merge_branch
from noble_fx.passes.inference.merge_view import merge_view
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.passes.inference.sink_view import sink_view
from noble_fx.passes.insert.drop_block_place import drop_block_place
from noble_fx.passes.insert.drop_branch import drop_branch
from noble_fx.passes.insert.insert_block_branch import insert_block_branch
from noble_fx.passes.insert.insert_branch import insert_branch
from noble_fx.passes.insert.insert_channel_branch import insert_channel_branch
from noble_fx.passes.insert.insert_einsum_branch import insert_einsum_branch
from noble_fx.passes.insert.insert_expert_branch import insert_expert_branch
from noble_fx.passes.rule import Pipeline

_ALL = (
    Pipeline(
        (
            expose_linear,
            expose_product,
            insert_branch,
            insert_channel_branch,
            insert_expert_branch,
            insert_einsum_branch,
            insert_block_branch,
            drop_block_place,
            fuse_branch,
            share_input,
        ),
        name="train",
    ),
    Pipeline((share_input,), name="compiled"),
    Pipeline((drop_branch, drop_block_place), name="base"),
    Pipeline((split_group, fold_branch, share_input), name="inference"),
    Pipeline((split_group, merge_branch, join_up, join_factorized), cleanup=(remove_dead,), name="export"),
    Pipeline((split_group, merge_branch, join_down, join_factorized), cleanup=(remove_dead,), name="export_down"),
    Pipeline((split_group, merge_branch), cleanup=(remove_dead,), name="export_apart"),
    Pipeline((sink_view, merge_view), until_stable=True, name="rows"),  # a view that has sunk may meet another
)
PIPELINES: dict[str, Pipeline] = {pipeline.name: pipeline for pipeline in _ALL}
