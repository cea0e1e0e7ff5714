"""Models of images, alone and together with text."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.zoo.entry import DECODER, PART, SPECIAL, VOCABULARY, Entry, hugging_face, ids, pixels, tokens

_VIT: dict[str, Any] = {**PART, "image_size": 32, "patch_size": 16}
_TEXT: dict[str, Any] = {**PART, **SPECIAL, "max_position_embeddings": 16}
_SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
}  # fmt: skip


def _two_towers(model: str, **settings: Any) -> Any:
    def build() -> nn.Module:
        cls = getattr(__import__("transformers", fromlist=[model]), model)
        return cls(cls.config_class(text_config=_TEXT, vision_config=_VIT, **settings))

    return build


def _llava() -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {"model_type": "clip_vision_model", "projection_dim": 24, **_VIT}
    text = {"model_type": "llama", "use_cache": False, **DECODER}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=VOCABULARY - 1, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config)


def _text_with_image() -> dict[str, Any]:
    text = ids(8)
    text[:, 1:5] = VOCABULARY - 1  # where the image's four patches go
    return {"input_ids": text, **pixels()}


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, use_pretrained_backbone=False, num_queries=4,
        d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, num_labels=5, **layers,
    )  # fmt: skip
    return DetrForObjectDetection(config)


VISION = [
    Entry("ViT", hugging_face("ViTForImageClassification", **_VIT), pixels),
    Entry("DeiT", hugging_face("DeiTForImageClassification", **{**_VIT, "num_hidden_layers": 2}), pixels),
    Entry("BEiT", hugging_face("BeitForImageClassification", **_VIT, vocab_size=VOCABULARY,
                               use_relative_position_bias=True), pixels),
    Entry("DINOv2", hugging_face("Dinov2ForImageClassification", **_VIT, use_swiglu_ffn=True), pixels),
    Entry("Swin", hugging_face("SwinForImageClassification", **_SWIN), pixels),
    Entry("Swin v2", hugging_face("Swinv2ForImageClassification", **{**_SWIN, "num_heads": [4, 4]}), pixels),
    Entry("SegFormer", hugging_face("SegformerForSemanticSegmentation", num_encoder_blocks=2, depths=[1, 1],
                                    sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2],
                                    num_attention_heads=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=16), pixels),
    Entry("ConvNeXt", hugging_face("ConvNextForImageClassification", num_stages=2, hidden_sizes=[16, 32], depths=[1, 1],
                                   patch_size=4, image_size=32), pixels),
    Entry("DETR", _detr, pixels),
    Entry("CLIP", _two_towers("CLIPModel", projection_dim=24), lambda: {**tokens(), **pixels()}),
    Entry("SigLIP", _two_towers("SiglipModel"), lambda: {**tokens(), **pixels()}),
    Entry("LLaVA", _llava, _text_with_image),
]  # fmt: skip
