"""Files are whole or absent, whatever is in their place and whatever goes wrong."""

import os
from pathlib import Path

import pytest

from noble_fx import ExportError
from noble_fx.files import as_path, existing_file, read_json, staged, write_atomically


def put(target, text="new", overwrite=False, folder=False):
    with staged(target, ExportError, overwrite) as work:
        if folder:
            (work / target.name).mkdir()
            (work / target.name / "part").write_text(text)
        else:
            (work / target.name).write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_staged_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "file"
    with staged(target, ExportError) as work:
        (work / "file").write_text("new")
        (work / "file.data").write_text("weights")
        assert not target.exists()
        assert work.parent == target.parent
    assert target.read_text() == "new"
    assert names(target.parent) == ["file", "file.data"]


def test_what_is_there_stays_unless_it_may_be_replaced(tmp_path):
    for name, folder in (("file", False), ("folder", True)):
        target = tmp_path / name
        put(target, "old", folder=folder)
        with pytest.raises(ExportError, match="exists; remove it, choose another path, or pass overwrite=True"):
            put(target, folder=folder)
        text = target / "part" if folder else target
        assert text.read_text() == "old"
        put(target, overwrite=True, folder=folder)
        assert text.read_text() == "new"
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_and_a_folder_do_not_replace_each_other(folder, tmp_path):
    target = tmp_path / "target"
    put(target, "old", folder=not folder)
    with pytest.raises(ExportError, match="does not replace it; choose another path"):
        put(target, overwrite=True, folder=folder)
    assert (target if folder else target / "part").read_text() == "old"
    assert names(tmp_path) == ["target"]


def put_half(target, error):
    with staged(target, ExportError, overwrite=True) as work:
        (work / target.name).write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("bug"), KeyboardInterrupt()])
def test_an_error_on_the_way_leaves_what_was_there(error, tmp_path):
    target = tmp_path / "file"
    put(target, "old")
    said = ExportError if isinstance(error, OSError) else type(error)
    with pytest.raises(said) as caught:
        put_half(target, error)
    if isinstance(error, OSError):
        assert str(caught.value) == f"writing {target} failed: No space left on device; nothing was left there"
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_replaced_only_without_what_would_be_lost(tmp_path):
    def stranger(folder):
        return next((f"the {path.name}" for path in folder.iterdir() if path.name != "part"), "")

    def write(text, between=lambda: None):
        with staged(tmp_path / "target", ExportError, True, stranger) as work:
            (work / "target").mkdir()
            (work / "target" / "part").write_text(text)
            between()

    write("old")
    write("new")
    assert (tmp_path / "target" / "part").read_text() == "new"
    message = "target is not replaced, for the thesis would be lost; remove it, or choose another path"
    with pytest.raises(ExportError, match=message):
        write("newer", lambda: (tmp_path / "target" / "thesis").write_text("mine"))  # while it is written
    with pytest.raises(ExportError, match=message):
        write("newer")
    assert (tmp_path / "target" / "part").read_text() == "new"
    assert (tmp_path / "target" / "thesis").read_text() == "mine"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_between_the_renames_leaves_what_was_there(call, tmp_path, monkeypatch):
    target, calls = tmp_path / "target", []
    put(target, "old", folder=True)
    rename = Path.rename

    def interrupted(self, other):
        calls.append(other)
        if len(calls) == call == 1:
            raise KeyboardInterrupt
        result = rename(self, other)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(target, overwrite=True, folder=True)
    assert (target / "part").read_text() == "old"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_rename_that_fails_puts_the_old_back(folder, tmp_path, monkeypatch):
    target = tmp_path / "target"
    put(target, "old", folder=folder)

    def replace(self, other):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(ExportError, match=r"writing .*target failed: Input/output error"):
        put(target, overwrite=True, folder=folder)
    assert (target / "part" if folder else target).read_text() == "old"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("name", ["a\0b", "\udcff\0", "x" * 300, "file/below"])
def test_paths_that_cannot_be_written(name, tmp_path):
    put(tmp_path / "file", "old")
    with pytest.raises(ExportError, match="cannot write beside") as caught:
        put(tmp_path / name)
    str(caught.value).encode()  # a message that can be printed
    assert "\0" not in str(caught.value)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "does not exist"),
        ("folder", "is a folder"),
        ("pipe", "is no file"),
        ("a\0b", "does not exist|cannot be looked at"),
        ("x" * 300, "does not exist|cannot be looked at"),
        ("file/below", "does not exist"),
    ],
)
def test_files_that_are_not_there(name, reason, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("there")
    assert existing_file(str(tmp_path / "file"), ExportError, "") == tmp_path / "file"
    with pytest.raises(ExportError, match=rf"({reason}).*; make one") as caught:
        existing_file(tmp_path / name, ExportError, "make one")
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("path", [None, 5, [], object()])
def test_what_is_no_path(path):
    with pytest.raises(ExportError, match=r"is no path; pass a str or a pathlib.Path"):
        as_path(path, ExportError)


def test_an_atomic_write_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]
    with pytest.raises(IsADirectoryError, match="a folder is in the file's place"):
        write_atomically(tmp_path / "deep", b"new")
    assert names(tmp_path) == ["deep"]


def test_an_atomic_write_that_fails_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def replace(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", range(1, 5))
@pytest.mark.parametrize("error", [OSError(28, "no space"), KeyboardInterrupt()])
def test_two_files_are_both_replaced_or_neither(step, error, tmp_path, monkeypatch):
    """The external data of an ONNX file belongs to it: an old one beside a new file is a broken model."""
    target, moves = tmp_path / "m.onnx", []
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / name).write_text("old")

    def failing(source, place):
        moves.append(place)
        if len(moves) == step:
            raise error
        os.replace(source, place)

    def put_both():
        with staged(target, ExportError, overwrite=True) as work:
            for name in ("m.onnx", "m.onnx.data"):
                (work / name).write_text("new")
            monkeypatch.setattr(Path, "rename", failing)
            monkeypatch.setattr(Path, "replace", failing)

    with pytest.raises((ExportError, KeyboardInterrupt)):
        put_both()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.onnx": "old", "m.onnx.data": "old"}


def test_json_that_means_one_thing():
    assert read_json('{"a": [1, -2.5e3, null, "σ"]}') == {"a": [1, -2500.0, None, "σ"]}
    assert read_json(b"{}") == {}
    assert read_json(str(2**64)) == 2**64


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (b"\xff", "can't decode byte 0xff"),
        ('{"a": 1, "a": 1}', "a stands in it twice"),
        ('[{"\\n": 1, "\\n": 2}]', r"\\n stands in it twice"),
        ("[NaN]", "NaN is no number of JSON"),
        ("-Infinity", "-Infinity is no number of JSON"),
        ("1e999", "1e999 is too large a number"),
        ("9" * 5000, "9{20}… is a number of 5000 digits"),
        ('"\\ud800"', "a text in it is no Unicode"),
        ("[" * 100000, "it is nested too deeply"),
        ('{"a":' * 100000, "it is nested too deeply"),
    ],
)
def test_json_that_nobody_should_trust(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        read_json(text)
    assert str(caught.value).isprintable()


def test_folders_that_were_made_on_the_way_go_with_what_failed(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(RuntimeError, match="no"), staged(tmp_path / "there" / "a" / "b" / "file", ExportError):
        raise RuntimeError("no")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with staged(tmp_path / "there" / "a" / "b" / "file", ExportError) as work:
        (work / "file").write_text("whole")
    assert (tmp_path / "there" / "a" / "b" / "file").read_text() == "whole"
