"""Shared fixtures."""

import hashlib

import pytest
import torch
from tiny import build_tiny, make_concept

import mixofshow_lite as mos

SHARED = {}  # the tiny base, once a test has asked for it


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of the tiny base model."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny_base")


@pytest.fixture(scope="session")
def tiny_base(tiny_folder):
    """The tiny base model, loaded on the CPU. Nothing may change it: it is shared by all tests."""
    torch.set_num_threads(1)
    base = SHARED["base"] = mos.load_base(tiny_folder, device="cpu")
    SHARED["state"] = state(base)
    return base


def state(base):
    """All that a test could leave changed in a base: weights, modes, processors, scheduler."""
    nets = (base.text_encoder, base.unet, base.vae)
    digest = hashlib.sha256()
    for net in nets:
        for name, tensor in sorted(net.state_dict().items()):
            digest.update(name.encode() + str(tensor.dtype).encode() + tensor.detach().numpy().tobytes())
    modes = tuple(module.training for net in nets for module in net.modules())
    processors = tuple(type(module.processor) for module in base.unet.modules() if hasattr(module, "processor"))
    attention = base.text_encoder.config._attn_implementation
    return digest.hexdigest(), modes, processors, attention, str(base.scheduler.config), tuple(base.words)


@pytest.fixture(autouse=True)
def the_tiny_base_stays():
    """Every test leaves the shared base as it was."""
    yield
    if SHARED:
        now, before, SHARED["state"] = state(SHARED["base"]), SHARED["state"], state(SHARED["base"])
        assert now == before, "the test has changed the tiny base that all tests share"


@pytest.fixture
def concept(tiny_base):
    """One random concept of the tiny base, written "<bibi1> <bibi2>"."""
    return make_concept(tiny_base)
