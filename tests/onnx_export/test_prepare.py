"""The copy is free to be changed: the live model and the caller's inputs stay as they are."""

import pytest
import torch

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export.prepare import example_inputs, folded_copy, frozen_copy, given_inputs
from tests.models import tiny, tokens, transformed


def test_a_copy_shares_memory_and_nothing_else():
    model = transformed("modules").train()
    copied = frozen_copy(model)
    assert not copied.training
    assert model.training
    for (name, live), (copied_name, parameter) in zip(model.named_parameters(), copied.named_parameters(), strict=True):
        assert name == copied_name
        assert parameter.data_ptr() == live.data_ptr()
        assert parameter is not live
        assert live.requires_grad
        assert not parameter.requires_grad


def test_a_copy_in_another_dtype_leaves_the_model_alone():
    model = transformed("modules")
    copied = frozen_copy(model, torch.float16)
    assert {p.dtype for p in copied.parameters()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_folding_comes_before_rounding():
    """ω ⊙ D rounded once: the fold of the rounded factors would be off by another half digit."""
    model = transformed("modules")
    copied, steps = folded_copy(model, torch.float16, fold=True)
    assert {step.rule for step in steps} == {"fold_branch"}
    exact, _ = folded_copy(model, None, fold=True)
    for wide, narrow in zip(exact.parameters(), copied.parameters(), strict=True):
        assert torch.equal(wide.half(), narrow)
    kept, steps = folded_copy(model, None, fold=False)
    assert steps == []
    assert list(kept.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(exact(tokens()), model.eval()(tokens()), rtol=1e-4, atol=1e-4)


def test_inputs_are_copies_without_strides():
    x, ids = torch.randn(4, 3, requires_grad=True).t(), torch.arange(6)[::2]
    (example,), named = example_inputs(given_inputs(x, {"ids": ids, "flag": True}), torch.float16)
    assert example.dtype == torch.float16
    ((as_it_was,), _) = example_inputs(given_inputs(x, {}), None)
    assert torch.equal(as_it_was, x)
    assert as_it_was.dtype == torch.float32
    assert example.is_contiguous()
    assert not example.requires_grad
    assert named["ids"].dtype == torch.int64
    assert named["ids"].is_contiguous()
    assert named["ids"].data_ptr() != ids.data_ptr()
    assert named["flag"] is True


@pytest.mark.parametrize(("args", "kwargs"), [(5, {}), ({"x": torch.ones(1)}, {}), ((), [torch.ones(1)]), ((), "x")])
def test_arguments_that_are_none(args, kwargs):
    with pytest.raises(ExportError, match=r"must be a (tuple|dictionary) of example inputs, not"):
        given_inputs(args, kwargs)


def test_wrong_arguments_reach_the_caller(tmp_path):
    with pytest.raises(ExportError, match="args must be a tuple of example inputs, not int"):
        noble_fx.export_onnx(tiny(layers=1), 5, tmp_path / "m.onnx")
