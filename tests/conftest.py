"""Shared fixtures."""

import pytest
import torch
from tiny import build_tiny, make_concept

import mixofshow_lite as mos


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of the tiny base model."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny_base")


@pytest.fixture(scope="session")
def tiny_base(tiny_folder):
    """The tiny base model, loaded on the CPU. Nothing may change it: it is shared by all tests."""
    torch.set_num_threads(1)
    return mos.load_base(tiny_folder, device="cpu")


@pytest.fixture
def concept(tiny_base):
    """One random concept of the tiny base, written "<bibi1> <bibi2>"."""
    return make_concept(tiny_base)
