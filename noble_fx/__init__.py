"""noble_fx: NOBLE's nonlinear low-rank branches for any PyTorch model.

y = x Wᵀ + b + σ(x Dᵀ) Uᵀ beside every chosen linear layer, trained with the model and kept for good (arXiv 2603.06492).
"""

from typing import Any

from noble_fx import runtime
from noble_fx.adapting import drop_adapters, use_adapters
from noble_fx.attach.bases import named_bases
from noble_fx.branches.activations import activation_names, register_activation
from noble_fx.branches.base import Branch
from noble_fx.branches.kinds import branch_names, register_branch
from noble_fx.branches.noble import NobleBranch
from noble_fx.checkpoint import load, save
from noble_fx.codegen.report.kernel_set import KernelSet, kernels
from noble_fx.compress import compress
from noble_fx.compressing.plan import CompressionPlan
from noble_fx.config import PRESETS, NobleConfig, NoblePreset
from noble_fx.errors import CaptureError, CheckpointError, ConfigError, ExportError, KernelError, NobleError, Refusal
from noble_fx.explain import Explanation, explain
from noble_fx.fold import fold
from noble_fx.inspect import programs, sites
from noble_fx.layers import replaced
from noble_fx.layers.base_linears import base_linears
from noble_fx.layers.linear import NobleLinear
from noble_fx.layers.registry import register_layer
from noble_fx.merge import merge
from noble_fx.onnx_export.aten import export
from noble_fx.onnx_export.export import ExportReport, export_onnx
from noble_fx.onnx_export.session import OnnxModel
from noble_fx.passes.history import Program
from noble_fx.peft_files import load_peft, save_peft
from noble_fx.pretrained import from_pretrained
from noble_fx.sites.site import Site
from noble_fx.training.changing.add_branches import add_branches, remove_branches
from noble_fx.training.changing.base_state import load_base_state
from noble_fx.training.changing.merge_bases import merge_bases
from noble_fx.training.changing.set_rank import set_rank
from noble_fx.training.changing.truncate_bases import truncate_bases
from noble_fx.training.changing.zero_branches import zero_branches
from noble_fx.training.hierarchical_lasso import hierarchical_lasso
from noble_fx.training.hugging_face import NobleTrainerMixin
from noble_fx.training.looking.nonfinite import Nonfinite, find_nonfinite
from noble_fx.training.looking.stats import stats
from noble_fx.training.looking.watching import watching
from noble_fx.training.muon import muon_split
from noble_fx.training.parallel.noble_plan import noble_plan
from noble_fx.training.param_groups import param_groups
from noble_fx.training.rates import scale_lr
from noble_fx.training.rules.truncate import truncate
from noble_fx.training.stepping import step
from noble_fx.training.trainable import set_trainable
from noble_fx.transform import disabled, remove, reset_branches, reset_parameters, transform

# The public place of the class that runs an exported file; its own room lies below the runtime.
runtime.OnnxModel = OnnxModel
replaced.watch()

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The parallel styles, which import torch's own: half a second that most programs never need."""
    if name not in ("NobleColwiseParallel", "NobleRowwiseParallel"):
        raise AttributeError(f"module 'noble_fx' has no attribute {name!r}")
    from noble_fx.training.parallel import parallel_styles

    return getattr(parallel_styles, name)


__all__ = [
    "PRESETS",
    "Branch",
    "CaptureError",
    "CheckpointError",
    "CompressionPlan",
    "ConfigError",
    "Explanation",
    "ExportError",
    "ExportReport",
    "KernelError",
    "KernelSet",
    "NobleBranch",
    "NobleConfig",
    "NobleError",
    "NobleLinear",
    "NoblePreset",
    "NobleTrainerMixin",
    "Nonfinite",
    "Program",
    "Refusal",
    "Site",
    "activation_names",
    "add_branches",
    "base_linears",
    "branch_names",
    "compress",
    "disabled",
    "drop_adapters",
    "explain",
    "export",
    "export_onnx",
    "find_nonfinite",
    "fold",
    "from_pretrained",
    "hierarchical_lasso",
    "kernels",
    "load",
    "load_base_state",
    "load_peft",
    "merge",
    "merge_bases",
    "muon_split",
    "named_bases",
    "noble_plan",
    "param_groups",
    "programs",
    "register_activation",
    "register_branch",
    "register_layer",
    "remove",
    "remove_branches",
    "reset_branches",
    "reset_parameters",
    "runtime",
    "save",
    "save_peft",
    "scale_lr",
    "set_rank",
    "set_trainable",
    "sites",
    "stats",
    "step",
    "transform",
    "truncate",
    "truncate_bases",
    "use_adapters",
    "watching",
    "zero_branches",
]
