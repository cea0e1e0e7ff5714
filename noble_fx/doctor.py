"""What there is on this machine, and whether one small layer is right on it: `noble-fx doctor`."""

from __future__ import annotations

import os
import platform
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import noble_fx
from noble_fx.codegen.cache import cache_folder
from noble_fx.codegen.plan import DTYPES
from noble_fx.codegen.report.kernel_set import kernels
from noble_fx.codegen.report.resources import TARGETS
from noble_fx.errors import KernelError, nearest
from noble_fx.onnx_export.account import version_of
from noble_fx.onnx_export.tolerance import TOLERANCE
from noble_fx.ops.available import gpu_of, why_no_kernel
from noble_fx.random_states import undisturbed
from noble_fx.runtime.load import have_triton
from noble_fx.tables import plain, table

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "transformers")
VARIABLES = ("NOBLE_FX_CACHE", "NOBLE_FX_DUMP", "NOBLE_FX_TUNE")  # all that this package reads
_ROWS, _IN, _OUT, _RANK = 33, 64, 48, 8  # of the layer that is tried


@dataclass(frozen=True)
class Kernels:
    """The targets for which kernels of a dtype are generated here, or why there are none."""

    dtype: str
    targets: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `reason` says why generated kernels do not run on it, empty where they do."""

    name: str
    architecture: str
    memory_gib: float
    reason: str


@dataclass(frozen=True)
class Check:
    """One layer with a branch, forward and backward, against the formula in float64."""

    device: str
    dtype: str
    way: str  # what computed it
    bound: float  # of `error`, the largest difference of a result or a gradient, over its largest value
    error: float | None = None
    problem: str = ""  # why there is no error to tell

    @property
    def agrees(self) -> bool:
        """True where it is as near as rounding leaves it."""
        return self.error is not None and self.error <= self.bound


@dataclass(frozen=True)
class Examination:
    """All that was found; `print` it by rich for a table, `to_dict()` for plain JSON values."""

    versions: dict[str, str]
    gpus: tuple[Gpu, ...]
    no_gpu: str
    kernels: tuple[Kernels, ...]
    cache: str
    cache_problem: str  # why nothing can be written there; empty where it can
    variables: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool:
        """True where the layer was right in every way that it was tried."""
        return all(check.agrees for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = [{**asdict(check), "agrees": check.agrees} for check in self.checks]
        return {**asdict(self), "checks": checks, "agrees": self.agrees}

    def __rich__(self) -> Table:
        shown = table(show_header=False, padding=(0, 1))
        shown.add_column(no_wrap=True)
        shown.add_column(overflow="fold")
        for what, found, style in self._lines():
            text = plain(found)
            text.stylize(style)
            shown.add_row(plain(what), text)
        return shown

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        """What was looked at, what was found, and the style in which it is shown."""
        for package, version in self.versions.items():
            yield package, version, "" if version != "not installed" else "dim"
        for gpu in self.gpus:
            yield "GPU", f"{gpu.name}, {gpu.architecture}, {gpu.memory_gib:.0f} GiB", ""
            yield "", f"no generated kernels: {gpu.reason}" if gpu.reason else "runs generated kernels", ""
        if not self.gpus:
            yield "GPU", f"none: {self.no_gpu}; PyTorch's operators run", ""
        for row in self.kernels:
            told = f"generated for {', '.join(row.targets)}" if row.targets else ""
            yield f"kernels, {row.dtype}", "; ".join(filter(None, (told, row.reason))), ""
        if self.cache_problem:
            remedy = "set NOBLE_FX_CACHE to a folder that can be"
            yield "cache", f"{self.cache} cannot be written: {self.cache_problem}; {remedy}", "red"
        else:
            yield "cache", f"{self.cache}, can be written", ""
        for name, value in self.variables.items():
            unread = "" if name in VARIABLES else f" – nothing reads it{nearest(name, VARIABLES)}"
            yield name, value + unread, "yellow" * bool(unread)
        for check in self.checks:
            yield f"check, {check.device}, {check.dtype}", _told(check), "green" if check.agrees else "red"


def _told(check: Check) -> str:
    if check.error is None:
        return f"failed: {check.problem}"
    word = "agrees" if check.agrees else "DOES NOT AGREE"
    return f"{word} with float64: largest error {check.error:.1e} (bound {check.bound:.0e}), by {check.way}"


def examine() -> Examination:
    """Look at versions, GPUs, kernels, the cache and the environment, and try one layer; changes nothing."""
    gpus, no_gpu = _gpus()
    cache, cache_problem = _cache()
    devices = ["cpu", *(f"cuda:{i}" for i in range(len(gpus)))]
    return Examination(
        versions=_versions(),
        gpus=gpus,
        no_gpu=no_gpu,
        kernels=tuple(map(_kernels, (*DTYPES, torch.float64))),
        cache=cache,
        cache_problem=cache_problem,
        variables={name: value for name, value in sorted(os.environ.items()) if name.startswith("NOBLE_FX_")},
        checks=tuple(
            _check(device, dtype) for device in devices for dtype in (DTYPES if device != "cpu" else (torch.float32,))
        ),
    )


def _versions() -> dict[str, str]:
    found = {package: version_of(package) for package in PACKAGES}
    shown = {name: "not installed" if version == "unknown" else version for name, version in found.items()}
    if shown["onnxruntime"] == "not installed" != shown["onnxruntime-gpu"]:
        del shown["onnxruntime"]  # the same library under another name
    elif shown["onnxruntime-gpu"] == "not installed":
        del shown["onnxruntime-gpu"]
    machine = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    return {"noble-fx": noble_fx.__version__, "python": machine, **shown}


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that torch can use, and why there are none."""
    if not (built := torch.version.cuda or torch.version.hip):
        return (), "this torch is built without CUDA and ROCm"
    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver that does not fit
        warnings.simplefilter("always")
        try:
            if torch.cuda.is_available():
                return tuple(map(_gpu, range(torch.cuda.device_count()))), ""
        except (RuntimeError, AssertionError) as problem:
            return (), str(problem)
    library = "CUDA" if torch.version.cuda else "ROCm"
    return (), "; ".join([f"torch, built for {library} {built}, finds none", *(str(one.message) for one in said)])


def _gpu(index: int) -> Gpu:
    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    target = f"sm_{properties.major}{properties.minor}"
    architecture = getattr(properties, "gcnArchName", target) if torch.version.hip else target
    reason = ""
    if gpu_of(device) is None:
        reason = "it is older than sm_80" if have_triton() else "triton is not installed"
    return Gpu(properties.name, architecture, properties.total_memory / 2**30, reason)


def _kernels(dtype: torch.dtype) -> Kernels:
    name = DTYPES.get(dtype, str(dtype).removeprefix("torch."))
    reasons: dict[str, None] = {}
    targets: list[str] = []
    try:
        made = kernels(in_features=_IN, out_features=_OUT, rank=_RANK, dtype=dtype)
    except KernelError as problem:
        return Kernels(name, (), str(problem))
    for target in TARGETS:
        try:
            made.on(target)
            targets.append(target)
        except KernelError as problem:
            reasons[str(problem)] = None
    refusal = why_no_kernel(made.plan.layer.act, _RANK, dtype)
    if refusal is not None:
        reasons[f"not run here: {refusal}"] = None
    return Kernels(name, tuple(targets), "; ".join(reasons))


def _cache() -> tuple[str, str]:
    """The folder of the cache, and why nothing can be written there; nothing is made."""
    try:
        folder = cache_folder()
    except RuntimeError as problem:  # no home
        return "none", str(problem)
    try:
        with tempfile.TemporaryFile(dir=next(place for place in (folder, *folder.parents) if place.exists())):
            return str(folder), ""
    except (OSError, ValueError) as problem:
        return str(folder), getattr(problem, "strerror", None) or str(problem)


# --- the layer -------------------------------------------------------------------------------------------------------


def _check(device: str, dtype: torch.dtype) -> Check:
    name, bound = DTYPES[dtype], TOLERANCE[dtype]
    try:
        with undisturbed(), torch.enable_grad():
            model, exact, x, dy = _layers(device, dtype)
            found, expected = _results(model, x, dy), _results(exact, x.cpu().double(), dy.cpu().double())
            error = max(_difference(a, b) for a, b in zip(found, expected, strict=True))
        return Check(device, name, _way(model, device, dtype), bound, error)
    except Exception as problem:  # whatever it is, it is what was asked for
        return Check(device, name, "", bound, problem=f"{type(problem).__name__}: {problem}")


def _layers(device: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The layer as it runs here, the same as modules in float64, x, and the gradient of y."""
    model, exact = (
        noble_fx.transform(
            nn.Sequential(nn.Linear(_IN, _OUT)), rank=_RANK, act="cosnet", select="all", seed=0, fuse=fuse
        )
        for fuse in (True, False)
    )
    with torch.no_grad():
        model[0].noble.up.normal_()  # as it is drawn the branch is small beside its layer
    model.to(device, dtype)
    exact.double().load_state_dict(model.state_dict())
    x, dy = torch.randn(_ROWS, _IN), torch.randn(_ROWS, _OUT)
    return model, exact, x.to(device, dtype), dy.to(device, dtype)


def _results(model: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y, and the gradients of x and of every parameter."""
    x = x.requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *model.parameters()], dy)]


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value; raises `ArithmeticError` for what is no number."""
    found = found.cpu().double()
    if not bool(found.isfinite().all()):
        raise ArithmeticError("a result is not finite")
    return float((found - expected).abs().max() / expected.abs().max())


def _way(model: Any, device: str, dtype: torch.dtype) -> str:
    branch = model[0].noble
    if branch.unfused:
        return f"modules: {branch.unfused}"
    if device == "cpu":
        return "noble_fx::linear in PyTorch's operators"
    if gpu_of(torch.device(device)) is None:
        return "noble_fx::linear in PyTorch's operators: no kernels run on this GPU"
    refusal = why_no_kernel(branch.key, _RANK, dtype, (_OUT, _IN))
    return f"noble_fx::linear in PyTorch's operators: {refusal}" if refusal else "generated kernels"
