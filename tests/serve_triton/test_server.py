"""Our model repository on a real Triton server: the masks of `Predictor`, cache, queue, batches, malformed requests.

`make test-triton`. Triton's Python backend runs the files; of the other backends, tests/packs/test_triton.py checks the
configurations alone.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from demo_exports import PHOTOS
from PIL import Image
from serve_triton.server import running
from small_exports import rewritten

from structsam_export.packs import write_pack
from structsam_export.runtime import Predictor

pytestmark = pytest.mark.triton
QUEUED = 4  # in these tests, so that few requests overflow it
PROMPTS = [
    {"point_coords": [[[40.0, 50.0]]], "point_labels": [[1]]},
    {"point_coords": [[[340.0, 30.0], [200.0, 200.0]], [[45.0, 55.0], [10.0, 10.0]]], "point_labels": [[1, 0], [1, 1]]},
    {"boxes": [[338.0, 16.0, 381.0, 62.0], [20.0, 30.0, 80.0, 90.0]]},
]


def exported(place, **options):
    """A traced and rewritten export of the bundled model."""
    return rewritten(place, model="demo", rate=0.5, **options)


def repository(folder, place):
    """The pack's models, with a short queue."""
    pack = write_pack(folder, place, "triton", {"backend": "python"}).folder
    for path in pack.glob("models/*/config.pbtxt"):
        path.write_text(re.sub("max_queue_size: .*", f"max_queue_size: {QUEUED}", path.read_text()))
    return pack


@pytest.fixture(
    scope="module",
    params=[(1, "sam"), (2, "litemedsam")],
    ids=["one image a call", "batch of two, LiteMedSAM's preprocessing"],
)
def served(request, tmp_path_factory):
    """Export folder, pack, running server, and what the driver found."""
    place = tmp_path_factory.mktemp("triton")
    batch, preprocessing = request.param
    folder = exported(place / "export", batch=batch, preprocessing=preprocessing)
    pack = repository(folder, place / "pack")
    with running(pack / "models", place) as server:
        yield folder, pack, server, asked(server, place)


def asked(server, place):
    """Everything of `driver.py`: what it told, and the arrays."""
    photo = np.asarray(Image.open(PHOTOS / "coins.jpg").convert("RGB"))
    np.save(place / "photo.npy", photo)
    addresses = {"http": server.http, "grpc": server.grpc}
    job = {**addresses, "photo": str(place / "photo.npy"), "encoder_size": 512, "prompts": PROMPTS, "clients": 16}
    (place / "job.json").write_text(json.dumps(job))
    command = [server.python, Path(__file__).with_name("driver.py"), place / "job.json", place / "found.npz"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-3000:] + server.log.read_text()[-3000:]
    return photo, json.loads(ran.stdout), np.load(place / "found.npz")


def iou(first, second):
    both = (first & second).sum((-2, -1))
    return both / np.maximum((first | second).sum((-2, -1)), 1)


def test_every_model_is_ready(served):
    _, pack, server, _ = served
    for path in (pack / "models").iterdir():
        assert server.get(f"/v2/models/{path.name}/ready") == 200, path.name


def test_masks_are_predictors_over_http_and_grpc(served):
    folder, _, _, (photo, _, found) = served
    with Predictor(folder, backend="onnxruntime") as predictor:
        predictor.set_image(photo)
        np.testing.assert_allclose(found["embedding"], predictor.get_image_embedding(), atol=1e-3)
        for i, prompt in enumerate(PROMPTS):
            arrays = {key: np.array(value) for key, value in prompt.items()}
            size, scale = photo.shape[:2], predictor.transform
            points, boxes = arrays.get("point_coords"), arrays.get("boxes")
            masks, scores, _ = predictor.predict_batch(
                None if points is None else scale.apply_coords(points, size),
                arrays.get("point_labels"),
                None if boxes is None else scale.apply_boxes(boxes, size),
            )
            for way in ("http", "grpc"):
                assert found[f"{way}.{i}.masks"].shape == masks.shape
                assert iou(found[f"{way}.{i}.masks"], masks).min() > 0.999
                np.testing.assert_allclose(found[f"{way}.{i}.iou_predictions"], scores, atol=1e-3)
        assert masks.any()


def test_the_encoder_runs_once_a_photo(served):
    _, _, _, (_, told, _) = served
    asked_for = 2 * len(PROMPTS)
    assert told["encoder"]["misses"] == 1
    assert told["encoder"]["hits"] == asked_for - 1
    assert told["after"]["hits"] == asked_for


def test_what_exceeds_the_queue_is_unavailable_at_once(served):
    _, _, _, (_, told, _) = served
    for name in ("overflow", "overflow_sam"):
        codes = told[name]
        assert set(codes) == {"OK", "StatusCode.UNAVAILABLE"}, codes
        assert codes["OK"] > QUEUED - 1
        assert sum(codes.values()) == 16, "no request is lost"


def test_requests_of_several_clients_share_a_batch(served):
    folder, _, _, (_, told, _) = served
    batch = json.loads((folder / "manifest.json").read_text())["config"]["batch"]
    before, after = told["after"], told["encoder_total"]
    inferences, executions = (after[key] - before[key] for key in ("inferences", "executions"))
    assert inferences >= told["overflow"]["OK"]
    assert (executions < inferences) == (batch > 1)


def test_malformed_requests_are_refused_with_a_reason(served):
    _, _, server, (_, told, found) = served
    for name, said in told["malformed"].items():
        assert said.startswith("StatusCode.INVALID_ARGUMENT"), (name, said)
    assert np.array_equal(found["last"], found["http.0.masks"]), "and the server answers as before"
    for body in (b"", b"{", b'{"inputs": [{"name": "image"}]}', b"\x89PNG\r\n", b"[" * 10_000):
        connection = http.client.HTTPConnection(server.http, timeout=30)
        connection.request("POST", "/v2/models/sam/infer", body, {"Content-Type": "application/json"})
        assert 400 <= connection.getresponse().status <= 500, "Triton's own parser says 500 of some"
        connection.close()
    assert server.process.poll() is None
    assert server.get("/v2/models/sam/ready") == 200


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_client_of_the_pack(served, protocol, tmp_path):
    _, pack, server, _ = served
    url = ["--grpc", "--url", server.grpc] if protocol == "grpc" else ["--url", server.http]
    prompt = ["--point", "45,55", "--box", "20,30,80,90", "--out", tmp_path / "mask.png"]
    command = [server.python, pack / "client.py", PHOTOS / "coins.jpg", *prompt, *url]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert "predicted IoU" in ran.stdout
    with Image.open(tmp_path / "mask.png") as mask, Image.open(PHOTOS / "coins.jpg") as photo:
        assert mask.size == photo.size
        assert np.asarray(mask).any()
