"""Output heads by name."""

import pytest
from torch import nn

import noble_fx
from noble_fx.sites.heads import is_head_name


@pytest.mark.parametrize(
    "fqn",
    [
        "lm_head", "output", "classifier.dense", "cls.predictions.decoder", "embed_out", "to_logits", "linear_head",
        "mlp_head.1", "lm_loss", "class_labels_classifier", "class_embed.0", "bbox_embed.0.layers.1", "proj_out",
        "final_layer.linear", "predictions.dense", "head_dist", "decoder_pred", "classification_head.out_proj",
        "transformer.proj_out", "heads.head",
    ],
)  # fmt: skip
def test_heads_by_name(fqn):
    assert is_head_name(fqn)


@pytest.mark.parametrize(
    "fqn",
    [
        "mid_block.attentions.0.proj_out", "layers.0.to_out", "decode_head.linear_projections.0.proj", "attn.proj_out",
        "layers.0.output", "layers.0.mlp.fc1", "encoder", "final_layer.adaLN_modulation.1", "attn_heads.q",
    ],
)  # fmt: skip
def test_what_no_name_calls_a_head(fqn):
    assert not is_head_name(fqn)


def test_heads_that_a_list_holds_are_heads_and_not_blocks():
    class Boxes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16)) for _ in range(2))
            self.bbox_embed = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)) for _ in range(2))

    sites = {site.fqn: site for site in noble_fx.sites(Boxes(), rank=2)}
    assert [name for name, site in sites.items() if site.role == "head"] == [n for n in sites if "bbox" in n]
    assert all(site.selected == ("layers" in name) for name, site in sites.items())
