"""The modules capture, which "auto" is: the user's own tree, each chosen layer given its branch in place."""

from __future__ import annotations

from torch import nn

from noble_fx.captures.base import Capture, Examples, Plan
from noble_fx.captures.flow_roles import maps_with_roles
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, Refusal
from noble_fx.sites.choose import choose
from noble_fx.sites.layer_maps import LinearMap


class Modules(Capture):
    """No graph: the model runs its own Python, and the layers call their branches."""

    calls_layers = True

    def plan(self, model: nn.Module, config: NobleConfig, examples: Examples) -> Plan | Refusal:
        maps = self.maps(model)
        try:
            return Plan(config, choose(model, maps, config))
        except ConfigError as error:
            raise ConfigError(f"{error}{_elsewhere(model, maps)}").leading_nowhere(error.dead_end) from None

    def maps(self, model: nn.Module) -> list[LinearMap]:
        return maps_with_roles(model)

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        return model


def _elsewhere(model: nn.Module, maps: list[LinearMap]) -> str:
    """What a capture by name would see of a model in which nothing can be chosen here."""
    bare = _bare_parameters(model, maps)
    if bare and all(linear_map.obstacle for linear_map in maps):
        return (
            f"; {bare[0]} is a parameter outside of any layer: capture='export' with example_inputs reaches those that "
            "the model multiplies with"
        )
    return ""


def _bare_parameters(model: nn.Module, maps: list[LinearMap]) -> list[str]:
    """The matrices that modules of the user's own hold as parameters, and that no map stands for."""
    listed = {linear_map.site.weight for linear_map in maps}
    return [
        fqn
        for fqn, parameter in model.named_parameters()
        if parameter.ndim >= 2
        and fqn not in listed
        and not type(model.get_submodule(fqn.rpartition(".")[0])).__module__.startswith("torch.nn.")
    ]
