"""Generated text on the disk: the place, atomic writes by several processes, files that are not to be trusted."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from noble_fx.codegen import cache as kernel_cache
from noble_fx.codegen.cache import cache_folder, plan_name, write_kernel
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import GENERATOR, Layer, make_plan
from noble_fx.errors import KernelError

PLAN = make_plan(Layer(32, (48,), 8, "cosnet-0123", torch.bfloat16, torch.float32))
KERNEL = Kernel("double", "VALUE = 2\n", (), row_tile=16, blocks=1, warps=4, stages=1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_path_names_the_plan_the_generator_and_the_text(cache):
    path = write_kernel(PLAN, KERNEL)
    assert path.read_text() == KERNEL.source
    assert path.parent == cache / "kernels" / f"g{GENERATOR}" / plan_name(PLAN)
    assert path.parent.name.startswith("cosnet-32to48-r8-bf16-")
    other_layer = replace(PLAN, layer=replace(PLAN.layer, down_bias=True))
    paths = {path, write_kernel(PLAN, replace(KERNEL, source="VALUE = 3\n")), write_kernel(other_layer, KERNEL)}
    assert len(paths) == 3
    assert write_kernel(PLAN, KERNEL) == path


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("NOBLE_FX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "noble_fx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "noble_fx"


@pytest.mark.parametrize("foreign", [b"", b"VALUE = 666\n", b"\xff\xfe broken"])
def test_a_foreign_file_is_written_again(cache, foreign):
    path = write_kernel(PLAN, KERNEL)
    path.write_bytes(foreign)
    assert write_kernel(PLAN, KERNEL) == path
    assert path.read_text() == KERNEL.source


def test_a_file_that_is_right_is_left_alone(cache):
    path = write_kernel(PLAN, KERNEL)
    os.utime(path, (1, 1))
    write_kernel(PLAN, KERNEL)
    assert path.stat().st_mtime == 1


def test_a_link_is_replaced_and_what_it_points_to_is_not_written(cache, tmp_path):
    path = write_kernel(PLAN, KERNEL)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    path.unlink()
    path.symlink_to(precious)
    write_kernel(PLAN, KERNEL)
    assert precious.read_text() == "mine"
    assert path.read_text() == KERNEL.source


@pytest.mark.parametrize("obstacle", ["a file where the cache should be", "a folder where the kernel should be"])
def test_where_the_cache_cannot_be_written_a_private_folder_serves(cache, obstacle):
    if obstacle.startswith("a file"):
        cache.write_text("in the way")
    else:
        path = write_kernel(PLAN, KERNEL)
        path.unlink()
        path.mkdir()
    path = write_kernel(PLAN, KERNEL)
    assert cache not in path.parents
    assert path.read_text() == KERNEL.source
    assert Path(path.parents[3]).stat().st_mode & 0o077 == 0


def test_with_no_folder_at_all_the_error_names_the_remedy(cache, monkeypatch):
    cache.write_text("in the way")
    monkeypatch.setattr(kernel_cache, "_private_folder", lambda: type("Folder", (), {"name": str(cache / "below")}))
    with pytest.raises(KernelError, match="set NOBLE_FX_CACHE to a folder that can be written"):
        write_kernel(PLAN, KERNEL)


WRITE = """
import sys
from pathlib import Path
from noble_fx.files import write_atomically
path = Path(sys.argv[1])
text = sys.argv[2].encode() * 20000
for _ in range(200):
    write_atomically(path, text)
    held = path.read_bytes()
    assert len(set(held)) == 1 and len(held) == len(text), len(held)
"""


@pytest.mark.long
def test_several_processes_never_see_half_a_file(tmp_path):
    command = [sys.executable, "-c", WRITE, str(tmp_path / "deep" / "file")]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([*command, letter], cwd=root, stderr=subprocess.PIPE) for letter in "ab"]
    errors = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
