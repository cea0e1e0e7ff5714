"""What a training rule is: one object that is called before and after each step of an optimizer.

    rule = Preconditioned(model)
    loss.backward(); rule.before_step(); optimizer.step(); rule.after_step()

or, where somebody else calls `optimizer.step()`:

    rule.on(optimizer)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from noble_fx.errors import ConfigError, shown


class Rule:
    """The base of every rule: both calls do nothing."""

    edits_gradients = False  # in before_step: then a closure, which computes gradients anew, would undo it unseen

    def before_step(self) -> None:
        """Edit gradients, or remember what the step must not change."""

    def after_step(self) -> None:
        """Edit what the step made of the parameters."""

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer with which the rule would not be what it says; raises `ConfigError`."""

    def on(self, optimizer: Optimizer) -> Hooks:
        """Let the optimizer call both by itself, in every `step()`; `.remove()` of the result ends that.

        Raises `ConfigError` for what is no optimizer or does not go with the rule; a step that is given a closure
        raises it where the rule edits gradients.
        """
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer={shown(optimizer)} must be a torch.optim.Optimizer")
        self.check_optimizer(optimizer)

        def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if self.edits_gradients and closure is not None:
                raise ConfigError(
                    f"{type(self).__name__} edits the gradients before a step, and a closure computes them anew inside "
                    "of it; call optimizer.step() without one, or call before_step() at the end of the closure yourself"
                )
            self.before_step()

        def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.after_step()

        return Hooks([optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)])


class Hooks:
    """The handles of a rule that an optimizer calls."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Let the optimizer step alone again."""
        for handle in self._handles:
            handle.remove()


def named_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name; `ConfigError` for what is no model."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"noble_fx takes an nn.Module for a model, not {type(model).__name__}")
    return dict(model.named_parameters())
