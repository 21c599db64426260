"""Triton's repository: every config.pbtxt by the schema, and the Python models run as Triton runs them.

`tests/serve_triton` does the same on a real server.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from pack_files import run
from tiny_model import IMAGE

from structsam_export.backends.base import Engine
from structsam_export.errors import UsageError
from structsam_export.folder import ExportFolder
from structsam_export.packs import pack_class, pbtxt, write_pack
from structsam_export.runtime import Predictor

BACKENDS = pack_class("triton").OPTIONS["backend"].choices
ENGINES = {"tensorrt": ("engine",), "openvino": ("xml", "bin")}


def with_engines(folder, backend):
    """Files that stand for engines: the pack copies, it does not load them."""
    export = ExportFolder.read(folder)
    for part in ("encoder", "decoder"):
        for ending in ENGINES.get(backend, ()):
            (folder / f"{part}.{backend}-1-x.{ending}").write_text(f"{part} {ending}")
        if backend in ENGINES:
            file = f"{part}.{backend}-1-x.{ENGINES[backend][0]}"
            export.add_engine(Engine(file, part, backend, "1", "x", "0" * 64, 1))
    export.record(passed=True)


def configs(pack):
    """Every config.pbtxt, parsed as Triton parses it."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    found = {}
    for path in sorted((pack / "models").glob("*/config.pbtxt")):
        found[path.parent.name] = text_format.Parse(path.read_text(), ModelConfig())
        assert found[path.parent.name].name == path.parent.name
        assert list((path.parent / "1").iterdir()), "a version's folder holds something"
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_configurations_are_those_of_the_graphs(backend, make_export, tmp_path):
    folder = make_export("merged")
    with_engines(folder, backend)
    pack = write_pack(folder, tmp_path / "pack", "triton", {"backend": backend}).folder
    found = configs(pack)
    assert set(found) == {"sam", "sam_embed", "sam_encoder", "sam_decoder", "sam_preprocess"}
    for part in ("encoder", "decoder"):
        config, graph = found[f"sam_{part}"], onnx.load(folder / f"{part}.onnx").graph
        assert (config.backend, config.max_batch_size) == (backend, 0)
        for mine, real in ((config.input, graph.input), (config.output, graph.output)):
            assert [t.name for t in mine] == [t.name for t in real]
            sizes = [[d.dim_value or -1 for d in t.type.tensor_type.shape.dim] for t in real]
            assert [list(t.dims) for t in mine] == sizes
        assert config.version_policy.latest.num_versions == 1
        (warm,) = config.model_warmup
        assert warm.batch_size == 1, "0 is skipped without a word"
        assert all(-1 not in entry.dims for entry in warm.inputs.values())
    encoder = found["sam_encoder"]
    assert encoder.response_cache.enable
    assert encoder.dynamic_batching.default_queue_policy.max_queue_size == 64
    names = {"tensorrt": ["model.plan"], "openvino": ["model.bin", "model.xml"], "python": ["model.onnx", "model.py"]}
    place = pack / "models" / "sam_encoder" / "1"
    assert sorted(p.name for p in place.iterdir()) == names.get(backend, ["model.onnx"])
    if backend in ENGINES:
        assert (place / names[backend][-1]).read_text().startswith("encoder")
    steps = found["sam_embed"].ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["sam_preprocess", "sam_encoder"]
    for step in steps:
        assert set(step.input_map) == {t.name for t in found[step.model_name].input}
        assert set(step.output_map) == {t.name for t in found[step.model_name].output}
    assert {t.name for t in found["sam"].input if not t.optional} == {"image"}


def test_what_a_backend_lacks_is_said(make_export, tmp_path):
    folder = make_export("plain")
    for backend in ENGINES:
        with pytest.raises(UsageError, match=f"structsam-export build .* --backend {backend}"):
            write_pack(folder, tmp_path / "pack", "triton", {"backend": backend})


def test_a_fixed_batch_stands_behind_one_that_is_filled_up(make_export, tmp_path):
    folder = make_export("merged", batch=2)
    found = configs(write_pack(folder, tmp_path / "pack", "triton").folder)
    assert found["sam_encoder"].max_batch_size == 2
    assert list(found["sam_encoder"].input[0].dims) == [3, IMAGE, IMAGE]
    assert list(found["sam_encoder"].dynamic_batching.preferred_batch_size) == [2]
    assert found["sam_encoder_fixed"].backend == "onnxruntime"
    assert list(found["sam_encoder_fixed"].input[0].dims) == [2, 3, IMAGE, IMAGE]
    assert list(found["sam_encoder_fixed"].model_warmup[0].inputs["image"].dims) == [2, 3, IMAGE, IMAGE]


def test_text_format_escapes():
    text = pbtxt.text({"a": 'x"\n\\', "b": [1, 2], "c": [{"d": True}, {"d": False}], "e": pbtxt.Name("KIND")})
    assert text == 'a: "x\\"\\n\\\\"\nb: [ 1, 2 ]\nc {\n  d: true\n}\nc {\n  d: false\n}\ne: KIND\n'


# ---- The Python models, called as Triton calls them


class Server:
    """Stands for Triton: `triton_python_backend_utils`, and models that call each other."""

    def __init__(self, pack, monkeypatch):
        self.pack, self.models, self.calls = pack, {}, []
        utils = ModuleType("triton_python_backend_utils")
        utils.Tensor = lambda name, values: SimpleNamespace(name=name, values=values, as_numpy=lambda: values)
        utils.get_input_tensor_by_name = lambda request, name: request.get(name)
        utils.get_output_tensor_by_name = lambda answer, name: answer.outputs[name]
        utils.InferenceResponse = Answer
        utils.TritonError = Error
        utils.TRITONSERVER_MEMORY_CPU, utils.PreferredMemory = 0, lambda kind, device: None
        utils.InferenceRequest = lambda **given: SimpleNamespace(exec=lambda: self.called(**given))
        self.pb = utils
        monkeypatch.setitem(sys.modules, utils.__name__, utils)
        self.monkeypatch = monkeypatch

    def model(self, name):
        """A Python model, loaded from the repository with nothing of the package's but what lies beside it."""
        if name not in self.models:
            place = self.pack / "models" / name / "1"
            for module in [m for m in sys.modules if m.startswith("structsam_runtime")]:
                del sys.modules[module]
            self.monkeypatch.syspath_prepend(str(place))
            spec = importlib.util.spec_from_file_location(f"triton_{name}", place / "model.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.models[name] = module.TritonPythonModel()
            config = configs(self.pack)[name]
            values = {key: {"string_value": value.string_value} for key, value in config.parameters.items()}
            self.models[name].initialize(
                {
                    "model_config": json.dumps({"parameters": values, "max_batch_size": config.max_batch_size}),
                    "model_repository": str(place.parent),
                    "model_version": "1",
                }
            )
        return self.models[name]

    def ask(self, name, **inputs):
        """One request."""
        return self.model(name).execute([{key: self.pb.Tensor(key, value) for key, value in inputs.items()}])[0]

    def called(self, model_name, requested_output_names, inputs, preferred_memory):
        self.calls.append(model_name)
        feeds = {tensor.name: tensor.values for tensor in inputs}
        if model_name == "sam_embed":
            made = self.ask("sam_preprocess", **feeds)
            return made if made.has_error() else self.ask("sam_encoder", image=made["prepared"])
        return self.ask(model_name, **feeds)


class Answer:
    def __init__(self, outputs, error=None):
        self.outputs, self._error = {tensor.name: tensor for tensor in outputs}, error

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error

    def __getitem__(self, name):
        return self.outputs[name].values


class Error:
    INVALID_ARG, UNAVAILABLE = "invalid", "unavailable"

    def __init__(self, message, code):
        self.message, self.code = message, code


@pytest.fixture
def served(make_export, tmp_path, monkeypatch):
    """(kind, options) -> the export's folder and a server of its pack."""

    def make(kind="merged", **options):
        folder = make_export(kind, **options)
        pack = write_pack(folder, tmp_path / "pack", "triton", {"backend": "python"}).folder
        return folder, Server(pack, monkeypatch)

    return make


PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
PROMPTS = {
    "a point": {"point_coords": np.float32([[[30, 20]]]), "point_labels": np.array([[1]])},
    "two prompts of two points": {
        "point_coords": np.float32([[[30, 20], [5, 5]], [[60, 40], [1, 2]]]),
        "point_labels": np.array([[1, 0], [1, 1]]),
    },
    "boxes": {"boxes": np.float32([[10, 10, 40, 30], [0, 0, 70, 50]])},
    "a point in a box, one mask": {
        "point_coords": np.float32([[[30, 20]]]),
        "point_labels": np.array([[1]]),
        "boxes": np.float32([[10, 10, 40, 30]]),
        "multimask_output": np.array([False]),
    },
}


@pytest.mark.parametrize("batch", [1, 2])
def test_masks_are_predictors(served, batch):
    folder, server = served(batch=batch)
    with Predictor(folder, backend="onnxruntime") as predictor:
        predictor.set_image(PHOTO)
        for given in PROMPTS.values():
            answer = server.ask("sam", image=PHOTO, **given)
            assert not answer.has_error(), answer.error()
            scale, size = predictor.transform, PHOTO.shape[:2]
            points, boxes = given.get("point_coords"), given.get("boxes")
            several = bool(given.get("multimask_output", [True])[0])
            masks, scores, logits = predictor.predict_batch(
                None if points is None else scale.apply_coords(points, size),
                given.get("point_labels"),
                None if boxes is None else scale.apply_boxes(boxes, size),
                multimask_output=several,
            )
            assert answer["masks"].dtype == bool
            np.testing.assert_array_equal(answer["masks"], masks)
            np.testing.assert_allclose(answer["iou_predictions"], scores, atol=1e-5)
            np.testing.assert_allclose(answer["low_res_masks"], logits, atol=1e-4)
            again = server.ask("sam", image=PHOTO, mask_input=logits[:, :1], **given)
            assert not np.array_equal(again["low_res_masks"], answer["low_res_masks"])


def test_requests_share_a_batch_and_get_their_own_part(served):
    _, server = served(batch=2)
    images = [np.random.default_rng(i).normal(size=(1, 3, IMAGE, IMAGE)).astype(np.float32) for i in range(3)]
    requests = [{"image": server.pb.Tensor("image", image)} for image in images]
    answers = server.model("sam_encoder").execute(requests)
    assert server.calls == ["sam_encoder_fixed"] * 2
    path = server.pack / "models" / "sam_encoder_fixed" / "1" / "model.onnx"
    for image, answer in zip(images, answers):
        alone = run(path, {"image": np.concatenate([image, image])})["image_embeddings"][:1]
        np.testing.assert_allclose(answer["image_embeddings"], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no prompt"),
        ({"point_coords": np.float32([[[np.nan, 1]]]), "point_labels": np.array([[1]])}, "not finite"),
        ({"point_coords": np.float32([[[3, 1]]]), "point_labels": np.array([[7]])}, "A label is"),
        ({"point_coords": np.zeros((1, 10**6, 2), np.float32), "point_labels": np.ones((1, 10**6))}, "1 to 14 points"),
        ({"boxes": np.zeros((10**6, 4), np.float32)}, "too many masks"),
        ({"boxes": np.zeros((0, 4), np.float32)}, "boxes have shape (0, 4)"),
        ({"boxes": np.zeros((1, 4), np.float32), "image": np.zeros((0, 5, 3), np.uint8)}, "An image is uint8"),
    ],
)
def test_what_is_wrong_is_said_and_is_an_invalid_argument(served, given, words):
    _, server = served("plain")
    answer = server.ask("sam", **{"image": PHOTO, **given})
    assert answer.has_error()
    assert answer.error().code == Error.INVALID_ARG
    assert words in answer.error().message


def test_an_error_behind_reaches_the_client_with_its_code(served):
    _, server = served("plain")
    full = Error("Exceeds maximum queue size", Error.UNAVAILABLE)
    server.called = lambda **given: Answer([], full)
    answer = server.ask("sam", image=PHOTO, boxes=np.float32([[0, 0, 9, 9]]))
    assert answer.error() is full
