"""Big weights stay in their file: detached, attached, inlined or linked, with the same results."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from structsam_export import rewrite as rewriting
from structsam_export.errors import ArtifactError
from structsam_export.rewrite import FORMS, apply_form, rewrite, weights


@pytest.fixture
def source(tmp_path):
    """y = (x @ big) * small, both weights in source.onnx.data."""
    rng = np.random.default_rng(0)
    big, small = rng.normal(size=(64, 96)).astype(np.float32), rng.normal(size=96).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "big"], ["z"]), helper.make_node("Mul", ["z", "small"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 96])],
        [numpy_helper.from_array(big, "big"), numpy_helper.from_array(small, "small")],
    )
    path = tmp_path / "source.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path), save_as_external_data=True, location="source.onnx.data", size_threshold=0)
    return path


def result(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    return session.run(None, {"x": np.ones((2, 64), np.float32)})[0]


@pytest.mark.parametrize(("limit", "files"), [(1 << 30, []), (0, ["out.onnx.data"])], ids=["inline", "beside"])
def test_rewriting_keeps_the_weights(source, tmp_path, monkeypatch, limit, files):
    monkeypatch.setattr(weights, "LARGE", 1000)
    monkeypatch.setattr(rewriting, "INLINE_LIMIT", limit)
    rewrite(source, tmp_path / "out.onnx", keep_outputs=("y",))
    assert [p.name for p in tmp_path.glob("out.onnx.data")] == files
    np.testing.assert_array_equal(result(tmp_path / "out.onnx"), result(source))
    if files:
        (tmp_path / "source.onnx.data").unlink()
        result(tmp_path / "out.onnx")  # the data file is its own, not a pointer to the source's


def test_only_large_weights_are_detached(source, monkeypatch):
    monkeypatch.setattr(weights, "LARGE", 1000)
    model = onnx.load(str(source), load_external_data=False)
    detached = weights.detach(model, source.parent)
    assert [t.name for t in detached] == ["big"]
    assert [i.name for i in model.graph.input] == ["x", "big"]
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == (96,)
    assert not detached[0].raw_data, "the values must not have been read"


def test_a_data_file_is_a_copy_that_onnx_reads(source, tmp_path, monkeypatch):
    """onnx refuses data files with several hard links, and precision.convert reads through onnx."""
    monkeypatch.setattr(weights, "LARGE", 1000)
    monkeypatch.setattr(rewriting, "INLINE_LIMIT", 0)
    rewrite(source, tmp_path / "out.onnx", keep_outputs=("y",))
    assert (tmp_path / "out.onnx.data").stat().st_nlink == 1
    for path in (source, tmp_path / "out.onnx"):
        made = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
        np.testing.assert_array_equal(made["big"], np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32))
    np.testing.assert_array_equal(result(tmp_path / "out.onnx"), result(source))


@pytest.mark.parametrize(("limit", "beside"), [(1 << 30, False), (0, True)], ids=["inline", "beside"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_alone_keeps_the_weights(source, tmp_path, monkeypatch, form, limit, beside):
    """Into another file and into the same one; weights that come to lie inside leave no file behind."""
    monkeypatch.setattr(weights, "LARGE", 1000)
    monkeypatch.setattr(rewriting, "INLINE_LIMIT", limit)
    expected, stored = result(source), (tmp_path / "source.onnx.data").read_bytes()
    assert apply_form(source, tmp_path / "out.onnx", form).nodes == 2
    beside = beside or form == "portable"  # which has nothing to do, and copies
    assert (tmp_path / "out.onnx.data").exists() is beside
    apply_form(source, source, form)
    assert (tmp_path / "source.onnx.data").exists() is beside
    if beside:
        assert (tmp_path / "source.onnx.data").read_bytes() == stored
    np.testing.assert_array_equal(result(source), expected)
    (tmp_path / "source.onnx.data").unlink(missing_ok=True)
    np.testing.assert_array_equal(result(tmp_path / "out.onnx"), expected)


def test_the_portable_form_of_a_small_file_is_a_copy(source, tmp_path):
    """Also over an earlier file, whose weights were beside it."""
    small, out = tmp_path / "small.onnx", tmp_path / "out.onnx"
    onnx.save(onnx.load(str(source)), str(small))
    apply_form(source, out, "portable")
    apply_form(small, out, "portable")
    assert out.read_bytes() == small.read_bytes() and not (tmp_path / "out.onnx.data").exists()
    apply_form(small, small, "portable")
    assert out.read_bytes() == small.read_bytes()


def hostile():
    """(name, model) of graphs that no exporter writes."""
    float_, node = TensorProto.FLOAT, helper.make_node
    x, y = (helper.make_tensor_value_info(n, float_, [2, 64]) for n in "xy")

    def model(nodes, weights=(), inputs=(x,), outputs=(y,), **options):
        graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
        opsets = options.pop("opset_imports", [helper.make_opsetid("", 18)])
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, **options)

    def pointing(location, **more):
        tensor = TensorProto(name="w", data_type=float_, dims=[64], data_location=TensorProto.EXTERNAL)
        for key, value in ({"location": location} | more).items():
            tensor.external_data.add(key=key, value=str(value))
        return model([node("Add", ["x", "w"], ["y"])], [tensor])

    short = TensorProto(name="w", data_type=float_, dims=[64], raw_data=b"123")
    kinds = TensorProto(name="w", data_type=99, dims=[64])
    negative = TensorProto(name="w", data_type=float_, dims=[-5])
    huge = TensorProto(name="w", data_type=float_, dims=[1 << 40, 1 << 20])
    return {
        "empty": onnx.ModelProto(),
        "no nodes": model([]),
        "cycle": model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]),
        "missing input": model([node("Add", ["x", "nowhere"], ["y"])]),
        "short weights": model([node("Add", ["x", "w"], ["y"])], [short]),
        "unknown type": model([node("Add", ["x", "w"], ["y"])], [kinds]),
        "negative": model([node("Add", ["x", "w"], ["y"])], [negative]),
        "huge": model([node("Add", ["x", "w"], ["y"])], [huge]),
        "unknown operator": model([node("NoSuch", ["x"], ["y"])]),
        "odd Reshape": model([node("Reshape", ["x", "x"], ["y"])]),
        "no opset": model([node("Relu", ["x"], ["y"])], opset_imports=[]),
        "upwards": pointing("../secret"),
        "absolute": pointing("/etc/hostname"),
        "no location": pointing(""),
        "not there": pointing("gone.data"),
        "link": pointing("link.data"),
        "another file": pointing("real.data"),
        "beyond the end": pointing("encoder.raw.onnx.data", offset=1 << 40, length=256),
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_graphs_are_rewritten_or_refused(name, tmp_path):
    """Whatever libraries say of them; and nothing outside the folder is read."""
    (tmp_path / "secret").write_bytes(b"\1" * 256)
    place = tmp_path / "folder"
    place.mkdir()
    (place / "real.data").write_bytes(b"\1" * 256)
    (place / "encoder.raw.onnx.data").write_bytes(b"\1" * 256)
    (place / "link.data").symlink_to(tmp_path / "secret")
    path = place / "encoder.raw.onnx"
    path.write_bytes(hostile()[name].SerializeToString())
    outside = name in ("upwards", "absolute", "no location", "not there", "link")
    for call in (
        lambda: rewrite(path, place / "out.onnx", keep_outputs=("y",)),
        lambda: apply_form(path, place / "form.onnx", "ort-cpu"),
        lambda: apply_form(path, place / "copy.onnx", "portable"),
    ):
        try:
            call()
        except ArtifactError as error:
            assert str(path) in str(error) and (not outside or "no plain file beside it" in str(error))
        else:
            assert not outside


@pytest.mark.parametrize("name", ["cycle", "missing input", "unknown operator", "short weights", "upwards"])
def test_hostile_graphs_do_not_run(name, tmp_path):
    from structsam_export.backends import backend

    path = tmp_path / "encoder.onnx"
    path.write_bytes(hostile()[name].SerializeToString())
    with pytest.raises(ArtifactError, match="cannot be used"), backend("onnxruntime").runner(path, "x"):
        pass
