"""What a linear map does in its model, read from its name, what encloses it, its shape and what stands beside it.

The nearest enclosing module that says what it is, by its class or else by its name, is the map's surroundings; within
them a name means one thing. Names come first, because they say the same in every capture; `roles_from_graph.py` fills
in where they say nothing.

attention.q .k .v .kv .qkv     into an attention; a fused one of q and more is `.qkv`
attention.out .gate            out of it; what its result is multiplied by
ffn.in .gate .out              the feed-forward part; a fused gate and up is `.in`
mixer.in .gate .state .out     what mixes tokens otherwise: Mamba, RWKV, linear attention, a convolution module;
                               `.state` makes the steps and decays of a recurrence
router                         which experts a token takes
embedding                      hidden states from patches, features, narrower embeddings or another tower
position                       where an attention looks: relative positions, sampling offsets, indexers
modulation                     scales and shifts from a timestep or a condition
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from noble_fx.layers.structured import Structured
from noble_fx.sites.enclosing import APART, is_wrapper, kind_of, letters_of, names_letters, surroundings, words_of
from noble_fx.sites.routers import is_router_class

OTHER = "other"
Shape = tuple[int, int]


def role_in(model: nn.Module, fqn: str, in_features: int, out_features: int) -> str:
    """The role of the map called `fqn` in `model`."""
    *parents, _ = fqn.split(".")
    module, own = model, type(model)
    classes = ["" if is_router_class(own) else own.__name__]  # a whole model routes something else than tokens
    for name in parents:
        module = module._modules[name]  # type: ignore[assignment]
        classes.append(type(module).__name__)
    return role_from_name(fqn, in_features, out_features, classes, _shapes(module))


def _shapes(module: nn.Module) -> dict[str, Shape | None]:
    return {name: _shape(child) for name, child in module.named_children()}


def _shape(layer: nn.Module) -> Shape | None:
    if isinstance(layer, Structured):
        return layer.weight_shape
    weight = getattr(layer, "weight", None)
    return (weight.shape[0], weight.shape[1]) if isinstance(weight, nn.Parameter) and weight.ndim > 1 else None


def role_from_name(
    fqn: str,
    in_features: int,
    out_features: int,
    classes: Sequence[str] = (),
    beside: Mapping[str, Shape | None] | None = None,
) -> str:
    """`attention.q`, `ffn.in`, … or `other`.

    `classes` are those of the modules around it, the model's first, `beside` the shapes of what stands beside it; what
    is not given is taken to be as in most models.
    """
    *parents, last = fqn.split(".")
    while parents and (is_wrapper(last) or last == "base_layer" or (last in _WRAPPED and not kind_of(parents[-1]))):
        *parents, last = parents  # what a wrapper holds is called by the wrapper's name
        classes, beside = classes[:-1], None
    kind, inside = surroundings(["", *parents], classes)
    inside = [name for name in inside if not is_wrapper(name)]
    own = kind_of(last)
    place = _Place(tuple(words_of(name) for name in (*inside, last)), (in_features, out_features), beside)
    if own in ("modulation", "position") or (own == "embedding" and kind not in ("attention", "ffn", "mixer")):
        return own
    if own == "router" or kind == "router" or place.is_gate_of_experts():
        return "router"
    if kind in APART:
        return kind
    kind = kind or (own if own in ("attention", "ffn") else "")
    if not kind and last.isdigit() and parents:  # an entry of a Sequential is named by it
        if parents[-1] == "net":
            return _in_ffn(place)
        place = replace(place, names=(words_of(parents[-1]),))
    return {"attention": _in_attention, "ffn": _in_ffn, "mixer": _in_mixer}.get(kind, _alone)(place)


@dataclass(frozen=True)
class _Place:
    """One map as its role is decided: the words of its names from its surroundings inwards, its own last."""

    names: tuple[tuple[str, ...], ...]
    shape: Shape
    beside: Mapping[str, Shape | None] | None

    @property
    def own(self) -> tuple[str, ...]:
        """The words of its own name."""
        return self.names[-1]

    def says(self, words: str) -> bool:
        """True if one of the names has one of `words`."""
        return any(word in words.split() for name in self.names for word in name)

    @property
    def number(self) -> int | None:
        """1 of `fc1`, `linear_1`, `layer_1`, `w1`; None of others."""
        pairs = zip(self.own, self.own[1:], strict=False)
        return next(
            (int(number) for stem, number in pairs if stem in _OF_A_PAIR and number in ("0", "1", "2", "3")), None
        )

    def is_gate_of_experts(self) -> bool:
        """True for `gate` beside `experts`, and for `shared_expert_gate`."""
        if self.own[-1:] not in (("gate",), ("gating",), ("wg",)):
            return False
        return "experts" in (self.beside or ()) or bool({"expert", "moe", "experts"} & set(self.own))


_WRAPPED = {"linear", "lin", "convolution", "conv"}  # what a wrapper calls the layer in it
_OF_A_PAIR = {"w", "wi", "fc", "lin", "linear", "dense", "conv", "pwconv", "layer", "ff", "ffn", "mlp", "proj", "c"}
_PLAIN_OUT = {
    "c",
    "attn",
    "att",
    "attention",
    "proj",
    "projection",
    "project",
    "dense",
    "linear",
    "fc",
    "merge",
    "final",
}


def _attention_input(letters: str) -> str:
    return f"attention.{letters if len(letters) == 1 or letters == 'kv' else 'qkv'}"


def _in_attention(place: _Place) -> str:
    inside = place.names if names_letters(place.names[0]) else place.names[1:] or place.names
    if {"pos", "position", "relative", "rel", "r", "offsets", "weights"} & {word for name in inside for word in name}:
        return "position"
    if {"gate", "gates", "g"} & set(place.own):
        return "attention.gate"
    letters = next((found for found in map(letters_of, reversed(inside)) if found), "")
    if letters:
        return _attention_input(letters)
    ins, outs = place.shape
    if outs == 3 * ins or {"in", "input"} & set(place.own) or place.own == ("c", "attn"):
        return "attention.qkv"
    if place.says("o wo out output post"):
        return "attention.out"
    return "attention.out" if set(place.own) <= _PLAIN_OUT else OTHER


def _in_ffn(place: _Place) -> str:
    ins, outs = place.shape
    last = set(place.own)
    if last & {"gate", "gates", "g", "receptance"}:
        return "ffn.in" if last & {"up", "in", "fc"} else "ffn.gate"
    if place.number is not None:
        return _of_a_pair(place)
    if place.own[-2:] == ("to", "h") or place.says("down out output wo o value reduce contract"):
        return "ffn.out"
    if place.says("4h h up in input inner wi intermediate expand key"):
        return "ffn.in"
    in_order = [int(name) for name, shape in (place.beside or {}).items() if name.isdigit() and shape]
    if place.own[0].isdigit() and len(in_order) > 1:
        return {min(in_order): "ffn.in", max(in_order): "ffn.out"}.get(int(place.own[0]), OTHER)
    if ins != outs:
        return "ffn.in" if outs > ins else "ffn.out"
    return "ffn.out" if last & {"proj", "projection"} else "ffn.in" if last & {"fc", "dense"} else OTHER


def _of_a_pair(place: _Place) -> str:
    """`fc1` goes in and `fc2` out, or `fc0` and `fc1`; of w1, w2, w3 the one that narrows goes out, and w1 gates."""
    stem, beside = place.own[0], place.beside
    if stem in ("w", "wi"):
        ins, outs = place.shape
        three = beside is None or any(words_of(name) == (stem, "3") for name in beside)
        if stem == "wi" or any(words_of(name) == (stem, "0") for name in beside or ()):
            return "ffn.gate" if place.number == 0 else "ffn.in"
        if ins != outs:
            return "ffn.out" if ins > outs else "ffn.gate" if place.number == 1 and three else "ffn.in"
        return {1: "ffn.gate" if three else "ffn.in", 2: "ffn.out"}.get(place.number or 0, "ffn.in")
    from_zero = any(words_of(name)[-1:] == ("0",) for name in beside or () if not name.isdigit())
    return "ffn.in" if place.number == (0 if from_zero else 1) else "ffn.out"


def _in_mixer(place: _Place) -> str:
    last = set(place.own)
    if place.own == ("conv",):  # a convolution with its norm and activation, which many call a ConvModule
        return OTHER
    if last & {"gate", "gates", "g", "z", "y", "ogate"}:
        return "mixer.gate"
    if last & {"out", "output", "o", "wo", "down", "end"} or place.number == 2:
        return "mixer.out"
    steps = {"x", "dt", "a", "b", "ba", "bc", "f", "beta", "decay", "igate", "fgate"}
    return "mixer.state" if last & steps and not last & {"linear"} and not letters_of(place.own) else "mixer.in"


# Names that need no surroundings to be known.
_PAIRS_ALONE = {("w",), ("wi",), ("fc",), ("lin",), ("linear",), ("dense",), ("pwconv",), ("ffn",)}
_ALONE = {
    "attention.qkv": "c_attn",
    "attention.out": "o_proj|to_out|out_lin|attn_out",
    "ffn.gate": "gate_proj|wi_0",
    "ffn.in": "up_proj|c_fc|fc_in|wi|wi_1|dense_h_to_4_h|gate_up_proj",
    "ffn.out": "down_proj|fc_out|dense_4_h_to_h",
}
_ALONE_COMPILED = {role: re.compile(pattern) for role, pattern in _ALONE.items()}


def _alone(place: _Place) -> str:
    """The role of a map that nothing encloses which says what it is."""
    name = "_".join(place.own)
    if names_letters(place.own):
        return _attention_input(letters_of(place.own))
    role = next((role for role, pattern in _ALONE_COMPILED.items() if pattern.fullmatch(name)), "")
    if role:
        return role
    if place.beside and any(letters_of(words_of(other)) for other in place.beside) and place.says("out o"):
        return "attention.out"
    partner = place.beside is None or sum(words_of(other)[:-1] == place.own[:-1] for other in place.beside) > 1
    stem = place.own[:-1]
    if place.number is not None and partner and (stem[-1:] in _PAIRS_ALONE or stem == ("pointwise", "conv")):
        return _of_a_pair(place)
    return OTHER
