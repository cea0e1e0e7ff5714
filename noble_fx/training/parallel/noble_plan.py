"""An ordinary plan for `parallelize_module`, as one that lays out branches too.

parallelize_module(model, mesh, noble_plan(model, {"blocks.*.fc1": ColwiseParallel(), ...}))
parallelize_module(model, mesh, noble_plan(model, model.tp_plan))                     Hugging Face's own words
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.errors import ConfigError, shown
from noble_fx.sites.site import BLOCK

if TYPE_CHECKING:
    from torch.distributed.tensor.parallel.style import ParallelStyle


def noble_plan(model: nn.Module, plan: Mapping[str, Any]) -> dict[str, ParallelStyle]:
    """`plan` with every style laying out the branch of its layer; keys are names of modules, `*` for any part.

    Values are styles of `torch.distributed.tensor.parallel`, or the words of a Hugging Face `tp_plan` ("colwise",
    "rowwise", ...). Raises `ConfigError` for a name that no module has, for a word without such a style, and for a
    model without branches; warns where two of the modules share one parameter.
    """
    from torch.distributed.tensor.parallel.style import ParallelStyle

    from noble_fx.training.parallel.parallel_styles import with_branch

    if not named_branches(model):
        raise ConfigError("the model carries no branches; call noble_fx.transform first, or parallelize it as it is")
    if around := next((name for name, branch in named_branches(model).items() if branch.role == BLOCK), None):
        raise ConfigError(
            f"the branch around the block {around!r} reads hidden states, of which a plan for its layers says nothing; "
            "transform with scope='linear' for a plan, or shard the model by fully_shard"
        )
    if not isinstance(plan, Mapping) or not plan:
        raise ConfigError(f"plan={shown(plan)} must be a dict: names of modules, and a style for each")
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    styles: dict[str, ParallelStyle] = {}
    for pattern, given in plan.items():
        if not isinstance(pattern, str) or not (found := [name for name in names if _matches(name, pattern)]):
            raise ConfigError(
                f"the plan names {shown(pattern)}, which is no module of the model{_nearest(pattern, names)}"
            )
        style = _of_word(pattern, given, found) if isinstance(given, str) else given
        if isinstance(given, str) and style is None:
            continue
        if not isinstance(style, ParallelStyle):
            raise ConfigError(f"the plan has {shown(given)} for {pattern!r}, which is no ParallelStyle")
        styles[pattern] = with_branch(style)
    _warn_of_shared(model, [name for name in names if any(_matches(name, pattern) for pattern in styles)])
    return styles


def _matches(name: str, pattern: str) -> bool:
    """As `parallelize_module` goes down the tree: part by part."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _nearest(pattern: Any, names: list[str]) -> str:
    near = difflib.get_close_matches(str(pattern), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _of_word(pattern: str, word: str, found: list[str]) -> ParallelStyle | None:
    """The style that transformers means by a word of its plans, None for what stays whole."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

    gathered = ColwiseParallel(output_layouts=Replicate())
    split = RowwiseParallel(input_layouts=Replicate())
    words: dict[str, ParallelStyle | None] = {
        "colwise": ColwiseParallel(),
        "colwise_rep": gathered,
        "colwise_gather_output": gathered,
        "rowwise": RowwiseParallel(),
        "rowwise_rep": split,
        "rowwise_split_input": split,
        "embedding_rowwise": split,
        "sequence_parallel": SequenceParallel(),
        "replicate": None,
    }
    if word not in words:
        raise ConfigError(
            f"the plan's {word!r} for {pattern!r} has no style in torch that says the same; give a ParallelStyle for "
            f"it, or leave {found[0]!r} whole: {{**plan, {pattern!r}: 'replicate'}}"
        )
    return words[word]


def _warn_of_shared(model: nn.Module, names: list[str]) -> None:
    seen: dict[int, str] = {}
    for name in names:
        module = model.get_submodule(name)
        for parameter in module._parameters.values():
            first = seen.setdefault(id(parameter), name) if parameter is not None else name
            if model.get_submodule(first) is not module:
                warnings.warn(
                    f"{first!r} and {name!r} share one parameter, of which parallelize_module makes two; tie them "
                    "again afterwards (transformers: model.tie_weights())",
                    stacklevel=3,
                )
                return
