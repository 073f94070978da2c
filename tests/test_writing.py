"""Files and folders are written whole or not at all."""

import os

import pytest
import torch

from mixofshow_lite.files import writing
from mixofshow_lite.files.writing import atomic_file, atomic_folder, write_text


class Killed(BaseException):
    """A process that ends in the middle, as far as Python can play that."""


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_the_new_one_only_at_the_end(tmp_path):
    file = tmp_path / "deep" / "x.json"
    write_text(file, "old")
    with atomic_file(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old" and temporary.parent == file.parent
    assert file.read_text() == "new" and names(file.parent) == ["x.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("x"), Killed()], ids=repr)
def test_a_file_stays_what_it_was_if_writing_fails(tmp_path, error):
    write_text(tmp_path / "x", "old")
    with pytest.raises(type(error), match="free some space" if isinstance(error, OSError) else None):
        with atomic_file(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise error
    assert (tmp_path / "x").read_text() == "old" and names(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("x"), Killed()], ids=repr)
def test_a_folder_stays_what_it_was_if_writing_fails(tmp_path, error):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    with pytest.raises(type(error), match="free some space" if isinstance(error, OSError) else None):
        with atomic_folder(tmp_path / "x") as temporary:
            (temporary / "new").touch()
            raise error
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["old"]


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "x") as temporary:
            (temporary / name).touch()
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["new"]


def test_a_file_cannot_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="Could not write .*x .*free some space"):
        write_text(tmp_path / "x", "text")
    assert names(tmp_path) == ["x"]


def test_the_full_disk_of_torch_is_said_as_well(tmp_path):
    with pytest.raises(OSError, match="free some space"), atomic_file(tmp_path / "x"):
        raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed")
    with pytest.raises(RuntimeError, match="something else"), atomic_file(tmp_path / "x"):
        raise RuntimeError("something else")


def test_others_may_read_what_is_written(tmp_path):
    """As any new file or folder: only the user's umask takes rights away."""
    mask = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "x") as temporary:
            torch.save({}, temporary)
        with atomic_folder(tmp_path / "y"):
            pass
    finally:
        os.umask(mask)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "xy"] == [0o644, 0o755]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(writing.os, "fsync", lambda number: done.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(writing.os, "replace", lambda *names: done.append("replace") or replace(*names))
    write_text(tmp_path / "x", "text")
    assert done == ["fsync", "replace"]
