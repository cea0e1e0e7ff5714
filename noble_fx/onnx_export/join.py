"""Which matrices of a site an export makes one: what is known, what "auto" takes, and what a report says of it.

`benchmarks/onnx_layers.py` measures the three ways by width, rank and rows. Points of overhead that [W U] saves, on
average over its chains on a Xeon, against every matrix apart / against [W; D]:

                          1 row        128 rows      1,024 rows
    ONNX Runtime       2.0 / 0.4      1.3 / 3.6       0.9 / 5.7
    OpenVINO           3.5 / 2.8      2.4 / 3.4       4.7 / 6.6
    OpenVINO bfloat16  4.2 / 2.2      7.9 / 9.1     12.5 / 15.2

No runtime wants another form, nor does any width, on the EPYC either; so "auto" asks for neither and takes [W U].
A site whose rows would get a bad length stays apart (`join_up` says why). `docs/architecture.md` has the exceptions.
"""

from __future__ import annotations

from noble_fx.errors import ExportError, shown

PIPELINES = {"up": "export", "down": "export_down", False: "export_apart"}  # by `join`
AUTO = "up"
_MEANING = {"up": "W and U one matrix", "down": "W and D one matrix", False: "every matrix apart"}
_MEASURED = "measured to cost least in ONNX Runtime and in OpenVINO"


def check_join(join: str | bool, *more: str) -> None:
    """Raises `ExportError` for a way to join matrices that is unknown; `more` are known beside the three."""
    if not (join is False or (isinstance(join, str) and join in (*PIPELINES, *more))):
        known = ", ".join(map(repr, (*more, "up", "down")))
        raise ExportError(f"join={shown(join)} is unknown; use {known} or False")


def chosen(join: str | bool, functions: bool) -> tuple[str | bool, str]:
    """The way that is taken, and a report's words for it: which, and why."""
    if functions:
        return False, f"{_MEANING[False]}: functions=True shows the operands of the formula"
    way, why = (AUTO, f"auto: {_MEASURED}") if join == "auto" else (join, f"join={join!r}")
    return way, f"{_MEANING[way]} ({why})"
