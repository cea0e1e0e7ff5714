"""What an ONNX file of this project says of itself, read back without running it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from noble_fx.errors import ExportError, printable
from noble_fx.files import existing_file, read_json
from noble_fx.sites.site import Site

METADATA = "noble_fx"  # the key in the file's metadata_props
FORMAT = 1

# What an account holds: a default where a file may lack the entry.
_REQUIRED: dict[str, Any] = {"model": str, "sites": list[dict[str, Any]], "base_params": int, "branch_params": int}
_OPTIONAL: dict[str, Any] = {
    "config": dict[str, Any],
    "settings": dict[str, str],
    "passes": dict[str, int],
    "versions": dict[str, str],
}


def read_account(path: str | Path) -> dict[str, Any]:
    """The account that `export_onnx` wrote: config, sites, settings, counts, versions.

    Raises `ExportError` for a file that is missing, truncated, no ONNX, not from here, or whose account is damaged.
    """
    path = existing_file(path, ExportError, "noble_fx.export_onnx(model, …, path=…) makes such a file")
    text = _account_text(path)
    try:
        account = read_json(text)
    except ValueError as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(account, dict) or "format" not in account:
        raise _unreadable(path, "it has no format")
    version = account["format"]
    if version != FORMAT:
        raise ExportError(f"{printable(path)} has format {version!r:.60}; this version reads {FORMAT}: update noble_fx")
    account = {**{name: {} for name in _OPTIONAL}, **account}
    for name, hint in {**_REQUIRED, **_OPTIONAL}.items():
        if name not in account:
            raise _unreadable(path, f"{name!r} is missing")
        if not _fits(account[name], hint):
            raise _unreadable(path, f"{name!r} is {account[name]!r:.60}, which is no {_name(hint)}")
    if wrong := wrong_site(account["sites"]):
        raise _unreadable(path, wrong)
    return account


def read_sites(path: str | Path) -> tuple[Site, ...]:
    """The linear maps of the model in the file, chosen or not, as `noble_fx.sites` gave them for the live one."""
    return sites_of(read_account(path))


def sites_of(account: dict[str, Any]) -> tuple[Site, ...]:
    """The linear maps that an account lists."""
    return read_entries(account["sites"])


def read_entries(entries: list[dict[str, Any]]) -> tuple[Site, ...]:
    """The sites of what `Site.to_dict` wrote, where `wrong_site` has nothing against it."""
    return tuple(map(_site, entries))


def _account_text(path: Path) -> str:
    """The account as the file carries it, in JSON."""
    try:
        import onnx
    except ImportError:
        raise ExportError('reading an ONNX file needs onnx: pip install "noble-fx[onnx]"') from None
    shown = printable(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ExportError(f"{shown} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise ExportError(f"{shown} is truncated or no ONNX file ({type(error).__name__}); export it again") from None
    if not model.graph.node or not model.opset_import:
        raise ExportError(f"{shown} is truncated or no ONNX file (it holds no graph); export it again")
    text = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
    if text is None:
        raise ExportError(f"{shown} was not written by noble_fx.export_onnx: it carries no account of its sites")
    return text


def _unreadable(path: Path, reason: str) -> ExportError:
    return ExportError(f"the account in {printable(path)} cannot be read: {printable(reason)}; export the model again")


# --- sites -----------------------------------------------------------------------------------------------------------

_FIELDS = {field.name: field for field in dataclasses.fields(Site)}
_HINTS = get_type_hints(Site)


def _site(entry: dict[str, Any]) -> Site:
    """A site of the fields that this version knows; the others keep their defaults."""
    values = {name: value for name, value in entry.items() if name in _FIELDS}
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Site(**(values | lists))


def wrong_site(entries: Any) -> str:
    """What is wrong with a list of sites that was read from JSON; "" where nothing is."""
    if not _fits(entries, list[dict[str, Any]]):
        return f"'sites' is {entries!r:.60}, which is no list"
    return next(filter(None, map(_wrong_with, entries)), "")


def _wrong_with(entry: dict[str, Any]) -> str:
    name = f"site {entry.get('fqn', '')!r:.60}"
    for field in _FIELDS.values():
        if field.name in entry:
            if not _fits(entry[field.name], _HINTS[field.name]):
                value = f"{entry[field.name]!r:.60}"
                return f"{field.name!r} of {name} is {value}, which is no {_name(_HINTS[field.name])}"
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            return f"{field.name!r} of {name} is missing"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is one of the type: str, int, bool, a list or a dictionary of such."""
    container, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if container in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if container in (list, tuple):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if container is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    return type(value) is hint


def _name(hint: Any) -> str:
    return {list: "list", tuple: "list", dict: "dictionary"}.get(get_origin(hint), getattr(hint, "__name__", str(hint)))
