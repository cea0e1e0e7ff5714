"""ONNX files say what PyTorch says, and a failed export leaves nothing."""

import json
import resource
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import noble_fx
from noble_fx import ExportError
from noble_fx.runtime import OnnxModel
from tests.models import WithOptional, loud, tiny, tokens
from tests.samples import crossed, long

AUTO = torch.export.Dim.AUTO


def small(**settings):
    """Two layers of features [B, T, 8] with branches, exported in a quarter of the time that a block takes."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8, bias=False))
    return loud(noble_fx.transform(layers.eval(), **{"rank": 4, "select": "all", **settings}))


def features(batch=2, length=5):
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[long("fx"), "modules"])
def exported(request, tmp_path_factory):
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, capture=request.param)).train()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = noble_fx.export_onnx(model, (tokens(1, 5),), path)
    assert model.training  # the live model is as it was
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    return model.eval(), report


def test_the_report(exported):
    model, report = exported
    assert report.largest_error < 1e-5
    assert report.checked == ("[1, 5]", "[1, 1]", "[1, 4]", "[2, 6]", "[2, 10]")
    assert report.verified_by == "ONNX Runtime"
    # In a captured graph two sites of the block read one input and are one operator; here each is one.
    groups = {"split_group": 2} if isinstance(model, torch.fx.GraphModule) else {}
    assert report.passes == {**groups, "fold_branch": 6, "join_up": 6}
    assert report.joined.startswith("W and U one matrix (auto: measured")
    assert report.kept == {}
    assert report.inputs == {"idx": "INT64 [batch,sequence]"}
    assert report.size == report.path.stat().st_size
    assert str(report.path) in str(report).replace("\n", "").replace(" ", "")
    assert [p.name for p in report.path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (7, 2)])
def test_batch_and_sequence_are_dynamic(exported, shape):
    model, report = exported
    torch.testing.assert_close(OnnxModel(report.path)(tokens(*shape)), model(tokens(*shape)), rtol=1e-4, atol=1e-4)


def test_the_branch_is_in_the_file(exported):
    model, report = exported
    with noble_fx.disabled(model):
        base = model(tokens())
    assert (OnnxModel(report.path)(tokens()) - base).abs().max() > 0.1
    graph = onnx.load(report.path)
    onnx.checker.check_model(graph)
    assert sum(node.op_type == "Cos" for node in graph.graph.node) == 12
    assert {node.domain for node in graph.graph.node} == {""}


def test_the_file_says_what_it_is(exported):
    _, report = exported
    properties = {p.key: p.value for p in onnx.load(report.path).metadata_props}
    described = json.loads(properties["noble_fx"])
    assert described["config"]["rank"] == 4
    assert sum(site["selected"] for site in described["sites"]) == 6
    assert described["versions"]["torch"] == torch.__version__


@pytest.mark.long
def test_size_is_that_of_the_parameters(tmp_path):
    model = noble_fx.transform(tiny(width=256, layers=1), rank=16)
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx")
    parameters = 4 * sum(p.numel() for p in model.parameters())
    graph = onnx.load(report.path)
    for initializer in graph.graph.initializer:
        initializer.ClearField("raw_data")
    # What is not weights is a few bytes a node, here 1.2 %, in a model of realistic width far below 1 %.
    assert report.size - len(graph.SerializeToString()) < 1.001 * parameters
    assert report.size < 1.02 * parameters


def optimised(path, folder) -> Counter:
    """The operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Counter:
    """The operators of the base model as torch exports it."""
    folder = tmp_path_factory.mktemp("plain")
    bare = torch.export.export(tiny(layers=1), (tokens(),), dynamic_shapes=({0: AUTO, 1: AUTO},))
    torch.onnx.export(bare, (), folder / "plain.onnx", dynamo=True, verbose=False)
    return optimised(folder / "plain.onnx", folder)


def test_at_most_seven_nodes_a_site_are_left(exported, plain, tmp_path):
    _, report = exported
    with_branches = optimised(report.path, tmp_path)
    linears = plain["MatMul"] + plain["Gemm"] - 1 - 1  # without (q kᵀ) v, and the head
    assert linears == 6
    biases = 4  # nodes of their own in the plain graph; k_proj has none, and that of fc1 is in BiasGelu
    sites = sum(with_branches.values()) - (sum(plain.values()) - linears - biases)
    assert sites / 6 <= 7
    assert (with_branches["Gemm"], with_branches["Cos"]) == (18, 12)
    assert with_branches["Concat"] == 6 + plain["Concat"]
    assert with_branches["Transpose"] == plain["Transpose"]  # no weight is transposed while the model runs


@pytest.fixture(scope="module")
def one_block(tmp_path_factory):
    """A block with branches, the file of its base model, and the operators in that."""
    model = loud(noble_fx.transform(tiny(layers=1), rank=4))
    with noble_fx.disabled(model):
        path = tmp_path_factory.mktemp("base") / "base.onnx"
        noble_fx.export_onnx(model, (tokens(),), path, verify=False)
    return model, path, Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("joined", "fold"), crossed([("auto", 0, 6), ("up", 0, 6), ("down", 6, 0), (False, 0, 0)], [True, False])
)
def test_what_is_joined(joined, fold, one_block, tmp_path):
    join, splits, concats = joined
    model, _, base = one_block
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx", join=join, fold=fold)
    assert report.largest_error < 1e-5
    counts = Counter(node.op_type for node in onnx.load(report.path).graph.node)
    assert counts["Split"] - base["Split"] == splits
    assert counts["Concat"] - base["Concat"] == concats


@pytest.mark.parametrize("act", ["swiglu_net", long("gelu_scale"), "leaky_relu", long("cosnet_double")])
def test_other_activations(act, tmp_path):
    model = loud(noble_fx.transform(nn.Linear(8, 12), rank=4, act=act, select="all", preset="reference"))
    assert noble_fx.export_onnx(model, (features(),), tmp_path / "m.onnx").largest_error < 1e-4


class TwoInputs(nn.Module):
    """Keyword inputs, a constant, several outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        out = self.linear(x) * scale
        return {"out": out if y is None else out + y, "mean": out.mean(-1)}


def test_keywords_and_several_outputs(tmp_path):
    model = loud(noble_fx.transform(TwoInputs(), rank=2))
    kwargs = {"y": torch.randn(3, 8), "scale": 2.0}
    x = torch.randn(3, 8)
    noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx", kwargs=kwargs)
    out, mean = OnnxModel(tmp_path / "m.onnx")(x, y=kwargs["y"])
    expected = model(x, **kwargs)
    torch.testing.assert_close(out, expected["out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean, expected["mean"], rtol=1e-4, atol=1e-5)


def test_a_view_is_a_fine_example(tmp_path):
    assert noble_fx.export_onnx(small(), (features(2, 6)[:, :-1],), tmp_path / "m.onnx").largest_error < 1e-4


def test_another_dtype_leaves_the_model_alone(tmp_path):
    model = small()
    report = noble_fx.export_onnx(model, (features(),), tmp_path / "m.onnx", dtype=torch.float16)
    assert next(model.parameters()).dtype == torch.float32
    assert OnnxModel(report.path)(features().half()).dtype == torch.float16


@pytest.mark.parametrize("capture", ["modules", long("export")])
def test_gpt2_as_transformers_has_it(capture, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 40}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    examples = {"example_kwargs": {"input_ids": tokens()}} if capture == "export" else {}
    model = loud(noble_fx.transform(model, rank=4, capture=capture, **examples))
    report = noble_fx.export_onnx(model, path=tmp_path / "m.onnx", kwargs={"input_ids": tokens()})
    assert report.passes == {"fold_branch": 4, "join_up": 4}
    assert report.kept == {}
    assert list(report.outputs) == ["logits"]
    with torch.no_grad():
        expected = model(input_ids=tokens(3, 4)).logits
    torch.testing.assert_close(OnnxModel(report.path)(input_ids=tokens(3, 4)), expected, rtol=1e-4, atol=1e-4)
    kwargs = {"input_ids": tokens(), "use_cache": True}
    refuse("use_cache=True asks for a key–value cache", model, (), tmp_path / "n.onnx", kwargs=kwargs)


@pytest.mark.parametrize("capture", [long("modules"), "export"])
def test_attention_with_raw_parameters(capture, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)
    examples = {"example_inputs": (x,)} if capture == "export" else {}
    model = loud(noble_fx.transform(layer.eval(), rank=4, select="all", capture=capture, **examples))
    report = noble_fx.export_onnx(model, (x,), tmp_path / "m.onnx")
    assert report.passes["fold_branch"] == 4
    assert report.passes["join_up"] == (4 if capture == "export" else 3)


def test_a_plain_model_and_a_linear_branch(one_block, tmp_path):
    assert noble_fx.export_onnx(nn.Linear(8, 8), (features(),), tmp_path / "plain.onnx").passes == {}
    model = loud(noble_fx.transform(tiny(layers=1), rank=4, act="identity", capture="fx"))
    report = noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx")
    assert report.passes == {"split_group": 2, "merge_branch": 6}
    assert report.size < 1.05 * one_block[1].stat().st_size + 4000
    unfused = small(fuse=False)
    assert noble_fx.export_onnx(unfused, (features(),), tmp_path / "u.onnx").passes == {"fold_branch": 2}


def refuse(message, *args, **kwargs):
    with pytest.raises(ExportError, match=message):
        noble_fx.export_onnx(*args, **kwargs)


class Returns(nn.Module):
    """Returns its output and something else."""

    def __init__(self, extra):
        super().__init__()
        self.linear, self.extra = nn.Linear(8, 8), extra

    def forward(self, x):
        return self.linear(x), self.extra(x)


def test_outputs_must_be_tensors(tmp_path):
    for extra, message in (
        (lambda x: 3, "output 1 of the model is the constant 3"),
        (lambda x: "text", "output 1 of the model is the constant 'text'"),
        (lambda x: x.shape[0], "output 1 of the model is a number computed from sizes"),
        (lambda x: object(), "the model cannot be exported"),
    ):
        refuse(message, Returns(extra), (torch.randn(3, 8),), tmp_path / "m.onnx")
    report = noble_fx.export_onnx(Returns(lambda x: None), (torch.randn(3, 8),), tmp_path / "m.onnx")
    assert len(report.outputs) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_wrong_dynamic_shapes(tmp_path):
    model, path = noble_fx.transform(tiny(layers=1), rank=4), tmp_path / "m.onnx"
    for shapes in (({0: AUTO}, {0: AUTO}), {"nobody": {0: AUTO}}, ({5: AUTO},), ({1: torch.export.Dim("n", max=3)},)):
        refuse("dynamic_shapes does not fit the model", model, (tokens(),), path, dynamic_shapes=shapes)
    assert list(tmp_path.iterdir()) == []
    report = noble_fx.export_onnx(model, (tokens(),), path, dynamic_shapes=({0: AUTO},))
    assert report.inputs == {"idx": "INT64 [batch,5]"}
    assert report.checked[0] == "[2, 5]"
    assert {shape[-3:] for shape in report.checked} == {" 5]"}


def test_a_full_disk_leaves_nothing(tmp_path):
    """The operating system refuses to write more than a few hundred bytes, as a full disk would."""
    model = small()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        refuse("writing .* failed: File too large; nothing was left there", model, (features(),), tmp_path / "m.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_refusals_leave_nothing(tmp_path, monkeypatch):
    model, path = small(), tmp_path / "m.onnx"
    refuse("needs example inputs", model, (), path)
    refuse("opset=9 cannot be written; use 18 to", model, (features(),), path, opset=9)
    refuse("the model cannot be exported", WithOptional(), (torch.ones(2, 3, 4),), path)
    monkeypatch.setattr("noble_fx.onnx_export.verify.difference", lambda *_: (1.0, 1.0))
    refuse(r"differs from PyTorch by 1.00e\+00 .allowed: 0.0001.*was not written", model, (features(),), path)
    monkeypatch.setattr("noble_fx.onnx_export.verify.difference", lambda *_: (float("nan"), 1.0))
    refuse("differs from PyTorch by nan", model, (features(),), path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_stays(tmp_path):
    model, path = noble_fx.transform(tiny(layers=1), rank=4), tmp_path / "m.onnx"
    path.write_text("mine")
    refuse("exists; remove it", model, (tokens(),), path)
    refuse("cannot write beside", model, (tokens(),), path / "below.onnx")
    refuse(r"cannot write beside .*a\\x00b.onnx: embedded null byte", model, (tokens(),), "a\0b.onnx")
    assert path.read_text() == "mine"
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "figures.txt").write_text("mine")
    refuse("results is a folder; pass the path of the file in it", model, (tokens(),), folder, overwrite=True)
    assert (folder / "figures.txt").read_text() == "mine"
