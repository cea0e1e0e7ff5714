"""The model that a command line names: `package.module:factory`, or `hf:CONFIG.json` with random weights."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noble_fx.errors import ConfigError, printable


def build_model(spec: str, device: str = "meta") -> nn.Module:
    """The model of `package.module:factory` or `hf:CONFIG.json`, on `device`; raises `ConfigError`."""
    if is_written(spec):
        raise ConfigError(
            f"{printable(spec)} is a file or folder, which holds no model's code: give package.module:factory or "
            "hf:CONFIG.json; sites and explain read such files, and export takes weights with --weights FOLDER"
        )
    with torch.device(device):
        if spec.startswith("hf:"):
            return _from_hugging_face(Path(spec.removeprefix("hf:")))
        module_name, colon, factory_name = spec.partition(":")
        if not colon:
            raise ConfigError(
                f"model {spec!r} must be package.module:factory or hf:CONFIG.json; sites and explain also take "
                "FILE.onnx, or a folder of noble_fx.save"
            )
        sys.path.insert(0, os.getcwd())
        try:
            factory = getattr(importlib.import_module(module_name), factory_name)
        except ImportError as error:
            raise ConfigError(f"cannot import {module_name!r} for the model: {error}") from None
        except AttributeError:
            raise ConfigError(f"module {module_name!r} has no {factory_name!r}") from None
        finally:
            sys.path.remove(os.getcwd())
        model = _made(factory, spec)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{spec} gave {type(model).__name__}, not an nn.Module")
    return model


def is_written(spec: str) -> bool:
    """Whether it names what can be explained without the model: FILE.onnx, or a folder."""
    return spec.endswith(".onnx") or os.path.isdir(spec)


def _made(factory: Any, spec: str) -> Any:
    """What the factory gives; raises `ConfigError` where it wants arguments, which a command line has none for."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ConfigError(
            f"{spec} cannot be called without arguments ({error}); write a function that makes the model, and give that"
        ) from None
    except ValueError:  # a builtin that does not say what it takes
        pass
    return factory()


def _from_hugging_face(path: Path) -> nn.Module:
    if not path.exists():  # transformers would ask the hub for a model of that name
        raise ConfigError(f"{path} is not a Hugging Face config: there is no such file")
    try:
        import transformers
    except ImportError:
        raise ConfigError('a model from hf:CONFIG.json needs transformers: pip install "noble-fx[hf]"') from None
    try:
        config = transformers.AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a Hugging Face config: {error}") from None
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)(config)
    return transformers.AutoModel.from_config(config)
