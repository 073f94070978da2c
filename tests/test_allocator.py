"""What a process asks of the C library's allocator, and that nothing asks for it unasked."""

import ctypes
import platform

import pytest

import mixofshow_lite as mos
from mixofshow_lite.engine import allocator
from mixofshow_lite.engine.allocator import keep_freed_memory


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (allocator.SWITCH, *allocator.OWN):
        monkeypatch.delenv(name, raising=False)


def test_it_is_kept_where_the_c_library_can():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize(
    ("name", "value"), [(allocator.SWITCH, "0"), *((name, "131072") for name in sorted(allocator.OWN))]
)
def test_the_environment_has_its_way(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", None)  # is not asked at all
    assert not keep_freed_memory()


def test_loading_a_base_leaves_the_process_alone(tiny_folder, monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("the allocator was asked"))
    mos.load_base(tiny_folder, device="cpu")
