"""Files and folders are written whole or not at all."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixofshow_lite.files import writing
from mixofshow_lite.files.writing import LORA_FILE, WRITER, Kind, atomic_file, atomic_folder, check_target, write_text

THING = Kind("a thing", ("thing.json",), ("part",))
CARD = Kind("a card", ("card.json",), keeps=True)


def fill(folder, *files):
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_text(name)
    return folder


def write(folder, kind=THING, text="new"):
    with atomic_folder(folder, kind) as temporary:
        (temporary / kind.marks[0]).write_text(text)


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
    fill(tmp_path / "x", "thing.json")
    with pytest.raises(type(error), match="free some space" if isinstance(error, OSError) else None):
        with atomic_folder(tmp_path / "x", THING) as temporary:
            (temporary / "new").touch()
            raise error
    assert names(tmp_path) == ["x"] and names(tmp_path / "x") == ["thing.json"]


def test_a_file_cannot_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x is a folder: give the name of a file"):
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
        write(tmp_path / "y")
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


def refused(target, kind, says):
    before = [(p, p.is_file() and p.read_bytes()) for p in sorted(target.parent.rglob("*"))]
    with pytest.raises(OSError, match=says) as error:
        write(target, kind) if kind and kind.marks else write_text(target, "new")
    assert "\n" not in str(error.value) and "Errno" not in str(error.value)
    assert before == [(p, p.is_file() and p.read_bytes()) for p in sorted(target.parent.rglob("*"))]


def test_only_folders_of_the_kind_are_replaced(tmp_path):
    refused(fill(tmp_path / "a", "thesis.txt"), THING, "holds thesis.txt and is not a thing")
    refused(fill(tmp_path / "b", "thing.json", "thesis.txt"), THING, "holds thesis.txt beside a thing")
    refused(fill(tmp_path / "c", "card.json"), THING, "is not a thing")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", THING, "is a file")
    refused(tmp_path / "file" / "deep" / "x", THING, "file is a file, no folder")
    for folder in (fill(tmp_path / "old", "thing.json", "part"), fill(tmp_path / "empty"), tmp_path / "new"):
        write(folder)
        assert names(folder) == ["thing.json"] and (folder / "thing.json").read_text() == "new"


def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path / "here", "thing.json"))
    with pytest.raises(FileExistsError, match="the folder you are in"):
        write(Path("."))
    assert names(tmp_path) == ["here"]


def test_other_files_in_a_folder_that_keeps_them_stay(tmp_path):
    folder = fill(tmp_path / "x", "card.json", "LICENSE", ".hidden")
    fill(folder / "notes", "one.txt")
    (folder / "link").symlink_to("LICENSE")
    write(folder, CARD)
    assert names(folder) == [".hidden", "LICENSE", "card.json", "link", "notes"]
    assert (folder / "notes/one.txt").read_text() == "one.txt" and (folder / "card.json").read_text() == "new"
    assert (folder / "link").is_symlink() and names(tmp_path) == ["x"]


def test_a_link_is_followed(tmp_path):
    fill(tmp_path / "far", "thing.json")
    (tmp_path / "near").symlink_to(tmp_path / "far")
    write(tmp_path / "near")
    assert (tmp_path / "near").is_symlink() and (tmp_path / "far/thing.json").read_text() == "new"


def test_something_that_came_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(FileExistsError, match="thesis.txt"), atomic_folder(tmp_path / "x", THING) as temporary:
        (temporary / "thing.json").touch()
        fill(tmp_path / "x", "thesis.txt")
    assert names(tmp_path / "x") == ["thesis.txt"] and names(tmp_path) == ["x"]


def test_two_writers_at_once_leave_one_whole_folder(tmp_path):
    """The second one's is there in the end, the first one's was."""
    with atomic_folder(tmp_path / "x", THING) as one:
        (one / "thing.json").write_text("one")
        write(tmp_path / "x", text="two")
        assert (tmp_path / "x/thing.json").read_text() == "two"
    assert (tmp_path / "x/thing.json").read_text() == "one" and names(tmp_path) == ["x"]


@pytest.mark.parametrize("swaps", [True, False])
def test_killed_at_any_call_of_the_system_the_old_or_the_new_is_there(tmp_path, monkeypatch, swaps):
    """Where the system cannot swap two names, there is one moment with the old folder whole under a hidden name."""
    if not swaps:
        monkeypatch.setattr(writing, "exchange", lambda a, b: False)
    elif not writing.exchange(fill(tmp_path / "a"), fill(tmp_path / "b")):
        pytest.skip("this system cannot swap two names in one step")
    for call in ("rename", "fsync"):
        for number in range(4):
            folder = fill(tmp_path / f"{call}{number}" / "x", "thing.json", "part")
            with monkeypatch.context() as patch:
                left, real = [number], getattr(os, call)

                def dies(*arguments, left=left, real=real):
                    left[0] -= 1
                    if left[0] < 0:
                        os._exit(9)
                    return real(*arguments)

                patch.setattr(writing.os, call, dies)
                child = os.fork()
                if child == 0:
                    write(folder)
                    os._exit(0)
                os.waitpid(child, 0)
            found = {
                p: names(p) for p in folder.parent.iterdir() if (p / "thing.json").is_file() and p.suffix != ".part"
            }
            assert any(files in (["part", "thing.json"], ["thing.json"]) for files in found.values())
            assert not swaps or folder in found
            with pytest.raises(ValueError), atomic_folder(folder, THING):
                raise ValueError("the next writer fails")
            assert names(folder.parent) == ["x"] and names(folder) in (["part", "thing.json"], ["thing.json"])


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    for act in (lambda: write(tmp_path / "x"), lambda: write_text(tmp_path / "y", "new")):
        child = os.fork()
        if child == 0:
            writing.put_folder = writing.sync = lambda *_: os._exit(9)
            act()
        os.waitpid(child, 0)
        assert len(names(tmp_path)) == 1 and names(tmp_path)[0].endswith(".part")
        alive = tmp_path / names(tmp_path)[0].replace(f".{child}.", f".{os.getpid()}.")
        alive.touch()  # of a process that is still at work
        act()
        alive.unlink()
        (only,) = tmp_path.iterdir()
        assert only.name in "xy"
        shutil.rmtree(only) if only.is_dir() else only.unlink()


def test_a_new_file_never_takes_a_name(tmp_path, monkeypatch):
    for links in (True, False):
        if not links:
            monkeypatch.delattr(writing.os, "link")
        file = tmp_path / str(links)
        with atomic_file(file, replace=False) as temporary:
            temporary.write_text("first")
        with pytest.raises(FileExistsError, match="exists"), atomic_file(file, replace=False) as temporary:
            pass
        with pytest.raises(FileExistsError, match="exists"), atomic_file(tmp_path / "z", replace=False) as temporary:
            temporary.write_text("second")
            (tmp_path / "z").write_text("somebody was quicker")
        assert file.read_text() == "first" and (tmp_path / "z").read_text() == "somebody was quicker"
        (tmp_path / "z").unlink()
        assert not list(tmp_path.glob("*.part"))


def test_a_lora_file_of_others_is_not_replaced(tmp_path):
    other, own = tmp_path / "other.safetensors", tmp_path / "own.safetensors"
    save_file({"x": torch.zeros(1)}, other, metadata={"format": "pt"})
    save_file({"x": torch.zeros(1)}, own, metadata=WRITER)
    for file in (other, fill(tmp_path, "text") / "text"):
        with pytest.raises(FileExistsError, match="not a LoRA file written by this library"):
            check_target(file, LORA_FILE)
    check_target(own, LORA_FILE)
    check_target(tmp_path / "new.safetensors", LORA_FILE)


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EROFS, "that you may write to"), (errno.ENAMETOOLONG, "shorter name")]
)
def test_the_advice_fits_the_error(tmp_path, number, says):
    with pytest.raises(OSError, match=says), atomic_file(tmp_path / "x"):
        raise OSError(number, "as the system says it")
