"""Our pack on a real Ray Serve: `Predictor`'s masks, handles, batches, decoders in parallel, malformed requests.

`make test-ray`.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import registered
from demo_exports import PHOTOS
from PIL import Image
from serve_ray.server import environment, running, status_of, variables
from small_exports import rewritten
from tiny_model import save as save_tiny

from structsam_export.folder import ExportFolder
from structsam_export.packs import write_pack
from structsam_export.runtime import Predictor

pytestmark = pytest.mark.ray
PHOTO = PHOTOS / "coins.jpg"
PROMPTS = [
    {"points": [[40.0, 50.0]]},
    {"points": [[340.0, 30.0], [200.0, 200.0]], "labels": [1, 0]},
    {"box": [338.0, 16.0, 381.0, 62.0]},
    {"points": [[45.0, 55.0]], "labels": [1], "box": [20.0, 30.0, 80.0, 90.0], "multimask": False},
]


@pytest.fixture(scope="module", params=["sam", "litemedsam"])
def served(request, tmp_path_factory):
    """Export folder of two images a call, pack, address, log; by how photos are prepared."""
    place = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patched:
        weights = registered(patched, "tiny", "tiny_model:build", save_tiny, place)
        folder = rewritten(
            place / "export", model="tiny", checkpoint=str(weights), rate=0.5, batch=2, preprocessing=request.param
        )
    ExportFolder.read(folder).record(passed=True)
    pack = write_pack(folder, place / "pack", "ray").folder
    with running(pack, place / "log") as url:
        yield folder, pack, url, place / "log"


def post(url, asked):
    """Status and JSON of a POST."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    status, found = status_of(url, body)
    return status, json.loads(found)


def photo(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(row):
    with Image.open(io.BytesIO(base64.b64decode(row["png"]))) as picture:
        return np.asarray(picture).astype(bool)


def test_masks_are_predictors(served):
    folder, _, url, _ = served
    status, about = post(f"{url}/embed", PHOTO.read_bytes())
    assert (status, about["cached"]) == (200, False)
    pixels = np.asarray(Image.open(PHOTO).convert("RGB"))
    with Predictor(folder, backend="onnxruntime") as predictor:
        predictor.set_image(pixels)
        for prompt in PROMPTS:
            status, found = post(f"{url}/predict", {"image": about["image"], **prompt})
            assert status == 200, found
            points = prompt.get("points")
            labels = None if points is None else np.array(prompt.get("labels", [1] * len(points)))
            given = (None if points is None else np.array(points), labels, prompt.get("box"))
            masks, scores, _ = predictor.predict(*given, multimask_output=prompt.get("multimask", True))
            order = np.argsort(-scores, kind="stable")
            np.testing.assert_allclose([row["score"] for row in found["masks"]], scores[order], atol=1e-5)
            for row, i in zip(found["masks"], order, strict=True):
                assert mask_of(row).shape == pixels.shape[:2]
                assert (mask_of(row) != masks[i]).mean() < 1e-4
            assert masks.any() and not masks.all()
    sent = {"image": base64.b64encode(PHOTO.read_bytes()).decode(), **PROMPTS[0]}
    assert post(f"{url}/predict", sent)[1]["image"] == about["image"], "the photo itself is its name, too"


def test_a_photo_is_embedded_once_and_photos_share_a_batch(served):
    _, _, url, _ = served
    photos = [photo(seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        first = [found for _, found in pool.map(lambda data: post(f"{url}/embed", data), photos)]
    assert [found["cached"] for found in first] == [False] * 12
    assert max(found["batch"] for found in first) == 2
    assert all(post(f"{url}/embed", data)[1]["cached"] for data in photos)
    clicks = [{"image": found["image"], "points": [[30, 20]]} for found in first for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda click: post(f"{url}/predict", click), clicks))
    assert {status for status, _ in answers} == {200}, "no request is lost"
    for i in range(0, len(clicks), 4):
        masks = [answer["masks"] for _, answer in answers[i : i + 4]]
        assert masks[1:] == masks[:-1], "whichever replica decodes"
    assert len({json.dumps(answer["masks"]) for _, answer in answers}) > 6, "photos in one batch keep their own answers"


def test_malformed_requests_are_refused_with_a_reason(served):
    _, _, url, _ = served
    name = post(f"{url}/embed", photo(0))[1]["image"]
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    cases = [
        ("embed", b"", 422, "no photo"),
        ("embed", PHOTO.read_bytes()[:500], 422, "no photo"),
        ("embed", huge.getvalue(), 422, "pixels"),
        ("predict", b"[" * 10_000, 422, "JSON"),
        ("predict", {"points": [[1, 1]]}, 422, "JSON"),
        ("predict", {"image": "0" * 64, "points": [[1, 1]]}, 404, "/embed again"),
        ("predict", {"image": "../../etc/passwd", "points": [[1, 1]]}, 422, "base64"),
        ("predict", {"image": base64.b64encode(b"no photo").decode(), "points": [[1, 1]]}, 422, "no photo"),
        ("predict", {"image": name}, 422, "no prompt"),
        ("predict", {"image": name, "points": [[1, float("nan")]]}, 422, "not finite"),
        ("predict", {"image": name, "points": [[1, 2]] * 1000}, 422, "256 points"),
        ("predict", {"image": name, "points": [[1, 2]], "labels": [7]}, 422, "label"),
        ("predict", {"image": name, "box": "<script>"}, 422, ""),
        ("other", b"", 404, "/predict"),
    ]
    for route, body, wanted, words in cases:
        status, found = post(f"{url}/{route}", body)
        assert (status, words in found["error"]) == (wanted, True), (route, str(body)[:60], status, found)
    assert post(f"{url}/predict", {"image": name, "points": [[1, 1]]})[0] == 200
    assert post(f"{url}/embed", PHOTO.read_bytes()[:500])[0] == 422, "a refusal is not kept as an embedding"


def test_the_client_of_the_pack(served, tmp_path):
    _, pack, url, _ = served
    command = [environment() / "python", pack / "client.py", PHOTO, "--point", "45,55", "--url", url]
    command += ["--out", tmp_path / "mask.png"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    with Image.open(tmp_path / "mask.png") as mask, Image.open(PHOTO) as own:
        assert mask.size == own.size


def test_the_measurement(served):
    """That it measures; how fast, docs/serving.md says."""
    _, pack, _, _ = served
    command = [environment() / "python", "measure.py", "--replicas", "1", "2", "--seconds", "2"]
    ran = subprocess.run(list(map(str, command)), cwd=pack, env=variables(pack), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = [line.strip("|").split("|") for line in ran.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows] == ["replicas of each", "1", "2"]
    assert all(float(cell) > 0 for row in rows[1:] for cell in row)
