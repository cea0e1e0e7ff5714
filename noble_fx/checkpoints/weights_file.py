"""`model.safetensors`: written, looked at, and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from noble_fx.checkpoints.config_file import MADE_BY
from noble_fx.checkpoints.state import State
from noble_fx.errors import CheckpointError, printable
from noble_fx.files import existing_file, read_json

WEIGHTS = "model.safetensors"
_LARGEST_HEADER = 100_000_000  # bytes, by safetensors' own rule
# safetensors' names of dtypes
_DTYPES = {
    "BOOL": torch.bool,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class Stored:
    """What the file's header says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def write(state: State, file: Path) -> None:
    """Write the tensors. Raises `CheckpointError` or `OSError`."""
    try:
        # transformers asks for this entry. It is the only one: safetensors writes several in any order, and one model
        # is to be one file.
        save_file(state.tensors, str(file), metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(f"writing {WEIGHTS} failed: {error}; nothing was left there") from None


def read_header(folder: Path) -> dict[str, Stored]:
    """Shape and dtype of every tensor in the folder's file, by name; raises `CheckpointError`."""
    path = existing_file(folder / WEIGHTS, CheckpointError, MADE_BY)
    stored = {}
    _check_names(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a file is no dictionary
                part = file.get_slice(name)
                dtype = part.get_dtype()
                if dtype not in _DTYPES:
                    raise CheckpointError(f"{printable(path)} has a tensor of dtype {dtype}, which save never writes")
                stored[name] = Stored(tuple(part.get_shape()), _DTYPES[dtype])
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    return stored


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors themselves, on the CPU and mapped from the file as far as that goes; raises `CheckpointError`."""
    path = folder / WEIGHTS
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, RuntimeError) as error:  # of sizes that no tensor can have
        raise _damaged(path, error) from None


def _check_names(path: Path) -> None:
    """Refuse a header that has a name twice, which safetensors takes: it reads the last one."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size <= min(_LARGEST_HEADER, path.stat().st_size):  # else safetensors says what is wrong
                read_json(file.read(size))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = printable(str(error).partition("\n")[0])
    return CheckpointError(f"{printable(path)} is truncated or no safetensors file ({reason}); save the model again")
