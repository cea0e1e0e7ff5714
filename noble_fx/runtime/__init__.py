"""From a generated kernel's text to a launch: loading, launching, a whole layer, and which variant is fastest."""

from __future__ import annotations

from typing import Any

OnnxModel: Any  # is put here by the package: what runs a file lies in a room further down
