"""What a Hugging Face folder has beside weights: the model's configs, which `save` writes, and files that it keeps."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from noble_fx.attach.model_config import is_pretrained
from noble_fx.errors import CheckpointError, printable
from noble_fx.layers.base import plain_class

WRITTEN = ("config.json", "generation_config.json")
# A tokenizer and a processor are no part of a model; they stay in a folder that is written again.
KEPT = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "image_processor_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)


def known(model: nn.Module) -> tuple[str, ...]:
    """The names that a folder of this model may have beside weights and settings."""
    return (*WRITTEN, *KEPT) if is_pretrained(model) else ()


def write(model: Any, folder: Path, before: Path) -> None:
    """The configs of a Hugging Face model, and what is kept of the folder `before` that this one replaces.

    Of any other model nothing is written. Raises `CheckpointError` for a config that transformers refuses to write.
    """
    if not is_pretrained(model):
        return
    config = copy.deepcopy(model.config)
    config.architectures = [plain_class(model).__name__]
    try:
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"transformers does not write the model's config: {printable(error)}") from error
    for name in KEPT:
        if (before / name).is_file():
            shutil.copy2(before / name, folder / name)
