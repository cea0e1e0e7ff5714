"""Encoders of text, encoders with decoders, and models of sound."""

from __future__ import annotations

from typing import Any

from tests.zoo.entry import (
    ENCODER,
    PART,
    SPECIAL,
    VOCABULARY,
    Entry,
    features,
    hugging_face,
    ids,
    sound,
    tokens,
    two_texts,
)

_BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2, **SPECIAL,
}  # fmt: skip
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_heads": 2, "decoder_start_token_id": 0, **SPECIAL}
_WAV2VEC: dict[str, Any] = {
    **PART, "conv_dim": (16, 16), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": VOCABULARY, "pad_token_id": 0,
}  # fmt: skip


def _encoder(name: str, model: str, **settings: Any) -> Entry:
    return Entry(name, hugging_face(model, **settings), tokens)


ENCODERS = [
    _encoder("BERT", "BertForMaskedLM", **ENCODER),
    _encoder("RoBERTa", "RobertaForMaskedLM", **ENCODER),
    _encoder("DistilBERT", "DistilBertForMaskedLM", dim=32, n_layers=1, n_heads=2, hidden_dim=48,
             max_position_embeddings=32, **SPECIAL),
    _encoder("ALBERT", "AlbertForMaskedLM", **ENCODER, embedding_size=16),
    _encoder("ELECTRA", "ElectraForMaskedLM", **ENCODER, embedding_size=16),
    _encoder("MobileBERT", "MobileBertForMaskedLM", **ENCODER, embedding_size=16, intra_bottleneck_size=16,
             num_feedforward_networks=2, true_hidden_size=16),
    _encoder("DeBERTa v2", "DebertaV2ForMaskedLM", **ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"],
             position_buckets=4, share_att_key=False),
    _encoder("ModernBERT", "ModernBertForMaskedLM", **ENCODER, cls_token_id=2, sep_token_id=3,
             attn_implementation="sdpa"),
    _encoder("ESM", "EsmModel", **ENCODER, mask_token_id=2, position_embedding_type="rotary"),
    _encoder("FNet", "FNetModel", **ENCODER),
    Entry("Funnel", hugging_face("FunnelForMaskedLM", block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=48,
                                 num_decoder_layers=1, **SPECIAL), lambda: {"input_ids": ids(8)}),
    Entry("T5", hugging_face("T5ForConditionalGeneration", **_T5, num_layers=1), two_texts),
    Entry("BART", hugging_face("BartForConditionalGeneration", **_BART, max_position_embeddings=32,
                               forced_eos_token_id=None), two_texts),
    Entry("Pegasus", hugging_face("PegasusForConditionalGeneration", **_BART, max_position_embeddings=32,
                                  forced_eos_token_id=None), two_texts),
    Entry("Whisper", hugging_face("WhisperForConditionalGeneration", **_BART, num_mel_bins=8, max_source_positions=8,
                                  max_target_positions=16),
          lambda: {"input_features": features(8, 16)["x"], "decoder_input_ids": ids()}),
    Entry("Wav2Vec2", hugging_face("Wav2Vec2ForCTC", **_WAV2VEC), sound),
    Entry("HuBERT", hugging_face("HubertForCTC", **_WAV2VEC), sound),
    Entry("Conformer", hugging_face("Wav2Vec2ConformerForCTC", **_WAV2VEC, position_embeddings_type="relative"), sound),
]  # fmt: skip
