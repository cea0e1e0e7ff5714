"""Hugging Face's Trainer with the groups of `param_groups`.

class NobleTrainer(NobleTrainerMixin, Trainer): ...
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from noble_fx.attach.attach import named_branches
from noble_fx.attach.model_config import KEY, is_pretrained
from noble_fx.errors import ConfigError, shown
from noble_fx.training.mixup import warn_of_mixup
from noble_fx.training.param_groups import param_groups

_OF_A_START = ("seed", "init_base", "fuse", "capture")  # which a checkpoint's tensors are no others for


class NobleTrainerMixin:
    """Put before `transformers.Trainer`: its own optimizer, rate and decay, with branches in groups of their own.

    Schedulers, resuming and everything else are the Trainer's. Raises `ConfigError` for an optimizer that takes no
    groups.
    """

    args: Any
    model: Any

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        first = next((kind for kind in cls.__mro__ if "create_optimizer" in vars(kind)), None)
        if first is not None and not issubclass(first, NobleTrainerMixin):
            raise ConfigError(
                f"{cls.__name__} asks {first.__name__} for the optimizer before the mixin: write class "
                f"{cls.__name__}(noble_fx.NobleTrainerMixin, {first.__name__})"
            )

    optimizer: Optimizer | None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; raises `ConfigError` where the checkpoint is of a model with other branches."""
        if resume_from_checkpoint:
            _check_same_branches(self.model, resume_from_checkpoint, self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimizer, whose groups are `param_groups`' from now on; one that was given stays as it is."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        model = next((each for each in (*args, kwargs.get("model")) if each is not None), self.model)
        if named_branches(model):
            warn_of_mixup(*(getattr(self, name, None) for name in ("data_collator", "train_dataset")))
        if given and optimizer is not None:
            _warn_of_equal_rates(optimizer, model)
        if not given and named_branches(model):
            _regroup(optimizer, model, self.args.learning_rate, self.args.weight_decay)
        return optimizer


def _regroup(optimizer: Any, model: Any, lr: float, weight_decay: float) -> None:
    own = [p for branch in named_branches(model).values() for p in branch.parameters()]
    if not _takes_groups(optimizer, own):
        raise ConfigError(
            f"{type(optimizer).__qualname__} takes no groups of branches; give the Trainer optimizers=(optimizer, None)"
        )
    of_branches = {id(p) for p in own}
    base = [
        {**group, "params": [p for p in group["params"] if id(p) not in of_branches]}
        for group in optimizer.param_groups
    ]
    groups = param_groups(model, lr, weight_decay, base=[group for group in base if group["params"]])
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)


def _takes_groups(optimizer: Any, own: list[Any]) -> bool:
    """Whether it holds the branches and no moments yet; a layerwise one is a stand-in for others that hold them."""
    if not isinstance(optimizer, Optimizer):
        return False
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    # A number that is no tensor is a parameter's own, such as APOLLO's seeds, and goes where the parameter goes.
    begun = any(isinstance(value, Tensor) for state in optimizer.state.values() for value in state.values())
    return not begun and all(id(p) in held for p in own if p.requires_grad)


def _warn_of_equal_rates(optimizer: Any, model: Any) -> None:
    """Warn where an optimizer that was given has branches in groups without a multiplier."""
    own = {id(parameter) for branch in named_branches(model).values() for parameter in branch.parameters()}
    if any(id(p) in own for group in optimizer.param_groups if "lr_scale" not in group for p in group["params"]):
        warnings.warn(
            "the optimizer that the Trainer was given has branches in groups without their multipliers; build it from "
            "noble_fx.param_groups(model, lr), or let the Trainer make it",
            stacklevel=4,
        )


def _check_same_branches(model: Any, asked: Any, output: str) -> None:
    """Compare the settings in a checkpoint's config with the model's; what has no config is left to the Trainer."""
    from transformers.trainer_utils import get_last_checkpoint

    folder = get_last_checkpoint(output) if asked is True and Path(output).is_dir() else asked
    file = Path(str(folder)) / "config.json"
    if not is_pretrained(model) or not file.is_file():
        return
    own = getattr(model.config, KEY, None)
    written = json.loads(file.read_text(encoding="utf-8")).get(KEY)
    own = None if own is None else json.loads(json.dumps(own))  # tuples are lists in a file
    if written == own:
        return
    if written is None or own is None:
        which = "no branches, and the model has some" if written is None else "branches, and the model has none"
    else:
        differ = [n for n in {**own, **written} if n not in _OF_A_START and own.get(n) != written.get(n)]
        if not differ:
            return
        which = "branches of other settings: " + ", ".join(
            f"{name} {shown(written.get(name))}, not {shown(own.get(name))}" for name in differ
        )
    raise ConfigError(
        f"the checkpoint {folder} has {which}. Go on with the model that it holds, by "
        "noble_fx.from_pretrained(cls, checkpoint), or begin anew without resume_from_checkpoint"
    )
