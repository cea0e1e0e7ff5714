"""Generated files of these tests go to a folder of their own, shared by the tests of a run."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))
