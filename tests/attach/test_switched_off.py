"""A branch is off while anybody asks for it, and on again when the last one has left."""

import copy
import pickle
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.attach.switched_off import is_off, switched_off
from tests.models import tiny, tokens, transformed


@pytest.fixture
def switch():
    """A module, and a log of how its switch was thrown."""
    module, log = nn.Linear(2, 2), []

    @contextmanager
    def off():
        log.append("off")
        try:
            yield
        finally:
            log.append("on")

    return module, log, off


def test_the_first_switches_off_and_the_last_switches_on(switch):
    module, log, off = switch
    first, second = switched_off(module, off), switched_off(module, off)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert log == ["off"]
    assert is_off(module)
    second.__exit__(None, None, None)
    assert log == ["off", "on"]
    assert not is_off(module)


def test_a_switch_that_fails_leaves_nothing_off(switch):
    module, log, off = switch

    @contextmanager
    def broken():
        with off():
            raise RuntimeError("broken")
            yield

    with pytest.raises(RuntimeError, match="broken"), switched_off(module, broken):
        pass
    assert log == ["off", "on"]
    assert not is_off(module)


@pytest.fixture(params=["modules", "fx"])
def model(request):
    return transformed(request.param)


@pytest.mark.parametrize("capture", ["modules", "fx", "export"])
def test_two_that_overlap_without_being_nested(capture):
    inputs = {"example_inputs": (tokens(),)} if capture == "export" else {}
    model = noble_fx.transform(tiny(layers=1), rank=4, capture=capture, **inputs)
    whole, base = model(tokens()), tiny(layers=1)(tokens())
    first, second = noble_fx.disabled(model), noble_fx.disabled(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(model(tokens()), base)
    second.__exit__(None, None, None)
    assert torch.equal(model(tokens()), whole)
    assert not torch.equal(whole, base)


def test_a_part_of_a_model_and_the_whole():
    model = transformed("modules")
    whole = model(tokens())
    with noble_fx.disabled(model):
        with noble_fx.disabled(model.blocks[0]):
            pass
        assert torch.equal(model(tokens()), tiny()(tokens()))
    assert torch.equal(model(tokens()), whole)


def test_threads_that_come_and_go(model):
    whole, base = model(tokens()), tiny()(tokens())
    wrong, barrier = [], threading.Barrier(4)

    def come_and_go():
        barrier.wait()
        for _ in range(5):
            with noble_fx.disabled(model), torch.no_grad():
                wrong.append(not torch.equal(model(tokens()), base))

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 20
    assert not any(wrong)
    assert torch.equal(model(tokens()), whole)


def test_another_model_stays_on():
    one, other = transformed("modules"), transformed("modules")
    with noble_fx.disabled(one):
        assert not torch.equal(other(tokens()), one(tokens()))


def test_a_copy_that_is_made_inside_is_a_model_with_its_branches_on():
    model = transformed("modules")
    with noble_fx.disabled(model):
        copied = copy.deepcopy(model)
    assert torch.equal(copied(tokens()), model(tokens()))
    assert not torch.equal(copied(tokens()), tiny()(tokens()))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps, noble_fx.fold])
def test_a_captured_model_is_not_copied_while_its_graphs_are_the_base_models(copied):
    model = transformed("fx")
    with noble_fx.disabled(model), pytest.raises(noble_fx.CaptureError, match=r"inside noble_fx.disabled.*outside"):
        copied(model)
    copied(model)


def test_inside_branches_cannot_be_removed(model):
    whole = model(tokens())
    with noble_fx.disabled(model), pytest.raises(noble_fx.ConfigError, match=r"inside noble_fx.disabled.*leave"):
        noble_fx.remove(model)
    assert torch.equal(model(tokens()), whole)
    noble_fx.remove(model)
