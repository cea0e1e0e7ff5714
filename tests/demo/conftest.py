"""A library of texts for the demo's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A little tree of files that looks like a standard library."""
    root = tmp_path / "lib"
    for i in range(60):
        path = root / f"package{i % 3}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# module {i}\n" + "".join(f"x{j} = {i} * {j}\n" for j in range(40)))
    (root / "test").mkdir()
    (root / "test" / "test_module.py").write_text("not to be read")
    return root
