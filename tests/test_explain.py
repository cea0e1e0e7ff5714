import io
import json

import torch
from rich.console import Console
from torch import nn

import noble_fx
from noble_fx.explain import WIDTH
from noble_fx.tables import plain
from tests.models import Gamma, WithOptional, tiny, transformed


def test_the_table_names_every_layer_with_its_reason():
    text = str(noble_fx.explain(transformed("fx")))
    assert "Tiny: 12 of 13 linear maps carry a branch" in text
    assert "capture: fx" in text
    assert "fused: 12 sites, each one noble_fx::linear" in text
    assert "pass fuse_branch: 12 rewrites" in text
    row = next(line for line in text.splitlines() if line.startswith("blocks.*.fc1"))
    assert row.split() == [
        "blocks.*.fc1",
        "2",
        "ffn.in",
        "Linear",
        "16",
        "→",
        "32",
        "4",
        "448",
        "+40.6%",
        "in",
        "a",
        *["repeated", "block"],
    ]
    assert next(line for line in text.splitlines() if line.startswith("head")).endswith("an output head")
    assert max(map(len, text.splitlines())) <= WIDTH


def test_counts_are_those_of_the_parameters():
    base = sum(p.numel() for p in tiny().parameters())
    explanation = noble_fx.explain(transformed("modules"))
    assert explanation.base_params == base
    assert explanation.branch_params == sum(site.params for site in explanation.sites)
    assert f"{explanation.branch_params / base:.1%} more" in str(explanation)


def test_it_says_why_there_is_no_graph_to_look_at():
    text = " ".join(str(noble_fx.explain(noble_fx.transform(WithOptional(), rank=4))).split())
    assert "capture: modules graph: noble_fx.explain(model, *inputs) makes one; without: forward has the opt" in text
    assert "pass " not in text


def test_the_passes_of_a_graph_to_look_at_are_not_said_to_run():
    text = str(noble_fx.explain(transformed("modules")))
    assert "a graph to look at (noble_fx.programs; the modules themselves run):\npass expose_linear: 12" in text
    assert "fused: 12 sites, each one noble_fx::linear\n" in text  # and none is grouped where the modules run
    assert "or one of a noble_fx::linear_group\n" in str(noble_fx.explain(transformed("fx")))


def test_plain_json_values():
    described = json.loads(json.dumps(noble_fx.explain(transformed("fx")).to_dict()))
    assert len(described["sites"]) == 13
    assert {step["rule"] for step in described["programs"][0]["history"]} >= {"insert_branch", "fuse_branch"}


def test_every_branch_has_its_own_sigma():
    parts = {act: noble_fx.transform(tiny(), rank=4, act=act, select="ffn") for act in ("gelu", "cosnet")}
    acts = noble_fx.explain(nn.ModuleDict(parts)).to_dict()["acts"]
    assert acts == {f"{act}.blocks.{i}.{name}": act for act in parts for i in range(2) for name in ("fc1", "fc2")}


def test_an_explanation_is_a_graph_and_a_picture():
    explained = noble_fx.explain(transformed("fx"))
    assert len(explained.to_networkx()) == 13 + 3
    assert "blocks.* ×2" in explained.to_dot()
    assert "blocks.* ×2" not in explained.to_dot(repeats=True)
    assert explained.to_mermaid().startswith("flowchart LR")


def test_a_plain_model_and_an_empty_one():
    assert "0 of 13 linear maps carry a branch" in str(noble_fx.explain(tiny()))
    assert "0 of 0" in str(noble_fx.explain(nn.ReLU()))


def test_meta_models_can_be_explained():
    with torch.device("meta"):
        model = noble_fx.transform(WithOptional(), rank=4)
    assert "12 of 13" in str(noble_fx.explain(model))


def test_it_says_which_sites_have_kernels_and_why_others_have_none():
    explanation = noble_fx.explain(transformed("modules"))
    assert "kernels: generated for 12 of 12 fused sites, on a GPU" in str(explanation)
    assert explanation.to_dict()["no_kernels"] == {}
    model = noble_fx.transform(tiny(), rank=4, act=Gamma, capture="modules")
    text = " ".join(str(noble_fx.explain(model)).split())
    assert "kernels: generated for 0 of 12 fused sites" in text
    assert "PyTorch operators at 12 sites: aten.lgamma" in text.replace("sites: the operator ", "sites: ")


def test_nothing_about_kernels_where_nothing_is_fused():
    assert "kernels:" not in str(noble_fx.explain(noble_fx.transform(tiny(), rank=4, fuse=False)))


NAMES = ["[bold]q[/bold]", "[/]", "a\x1b[31m\nb", ":smile:"]


def test_text_of_a_model_is_never_markup():
    class Marked(nn.Module):
        def __init__(self):
            super().__init__()
            for name in NAMES:
                self.add_module(name, nn.Linear(8, 8))

    Marked.__name__ = "[link=x]Marked[/]"
    text = str(noble_fx.explain(noble_fx.transform(Marked(), rank=2)))
    assert "[link=x]Marked[/]: 4 of 4 linear maps carry a branch" in text
    shown = [line.split()[0] for line in text.splitlines() if " Linear " in line]
    assert shown == ["[bold]q[/bold]", "[/]", "a\\x1b[31m\\nb", ":smile:"]


def test_colours_are_those_of_the_table_alone():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=WIDTH)
    console.print(plain("[red]x[/] \x1b[31m 5 True"))
    assert console.file.getvalue() == "[red]x[/] \\x1b[31m 5 True\n"
