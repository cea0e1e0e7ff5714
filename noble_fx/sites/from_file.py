"""What an ONNX file of this project says of itself, read back without running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noble_fx.errors import ExportError
from noble_fx.sites.site import Site

METADATA = "noble_fx"  # the key in the file's metadata_props
FORMAT = 1


def read_account(path: str | Path) -> dict[str, Any]:
    """The account that `export_onnx` wrote: config, sites, settings, counts, versions.

    Raises `ExportError` for a file that is missing, truncated, no ONNX, or not from here.
    """
    try:
        import onnx
    except ImportError:
        raise ExportError('reading an ONNX file needs onnx: pip install "noble-fx[onnx]"') from None
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path} does not exist; noble_fx.export_onnx(model, …, path=…) makes such a file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path} is truncated or no ONNX file ({type(error).__name__}); export it again") from None
    if not model.graph.node or not model.opset_import:
        raise ExportError(f"{path} is truncated or no ONNX file (it holds no graph); export it again")
    found = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
    if found is None:
        raise ExportError(f"{path} was not written by noble_fx.export_onnx: it carries no account of its sites")
    try:
        account: dict[str, Any] = json.loads(found)
        version = account["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ExportError(f"the account in {path} cannot be read: {error}") from None
    if version != FORMAT:
        raise ExportError(f"{path} has format {version}; this version reads {FORMAT}: update noble_fx")
    return account


def read_sites(path: str | Path) -> tuple[Site, ...]:
    """The linear maps of the model in the file, chosen or not, as `noble_fx.sites` gave them for the live one."""
    return tuple(Site(**{**site, "aliases": tuple(site["aliases"])}) for site in read_account(path)["sites"])
