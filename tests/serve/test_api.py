"""What is answered: the masks of `Predictor`, whatever the form they are asked for and sent in."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from serve.small_pictures import png

from structsam_export.runtime import AutomaticMaskGenerator
from structsam_export.runtime.regions import mask_of
from structsam_export.serve import api, openapi, pictures
from structsam_export.serve.polygons import polygons, simplified

VENDOR = Path(api.__file__).parent / "page" / "vendor" / "vendor.json"
POINT = {"points": [[20, 24], [50, 10]], "labels": [1, 0]}


def embedded(client, data):
    """Name of a picture that the server has."""
    answer = client.post("/v1/embed", content=data, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.json()["image"]


def wanted(client, data, **prompt):
    """What `Predictor` says: masks, scores, logits."""
    predictor = next(iter(client.served.values())).predictor
    [embedding] = predictor.embed([pictures.read(data, 10**6)])
    names = {"points": "point_coords", "labels": "point_labels", "box": "box"}
    arrays = {names[name]: np.array(value, float) for name, value in prompt.items()}
    return predictor.predict(**arrays, multimask_output=False, embedding=embedding)


@pytest.mark.parametrize("prompt", [POINT, {"box": [5, 6, 40, 30]}, {**POINT, "box": [5, 6, 60, 40]}])
def test_masks_are_predictors(client, picture, prompt):
    name = embedded(client, picture)
    answer = client.post("/v1/predict", json={"image": name, **prompt, "low_res": True})
    assert answer.status_code == 200
    found = answer.json()
    masks, scores, low = wanted(client, picture, **prompt)
    [row] = found["masks"]
    assert np.array_equal(mask_of(row["segmentation"]), masks[0])
    assert row["score"] == pytest.approx(float(scores[0]), abs=1e-6)
    assert row["area"] == masks[0].sum()
    assert np.array_equal(np.frombuffer(base64.b64decode(row["low_res"]), "<f4"), low.ravel())
    assert (found["width"], found["height"], found["image"], found["cached"]) == (64, 48, name, True)


def test_a_mask_is_refined_with_its_logits(client, picture):
    first = client.post("/v1/predict", json={"image": embedded(client, picture), **POINT, "low_res": True}).json()
    second = client.post(
        "/v1/predict", json={"image": first["image"], **POINT, "mask_input": first["masks"][0]["low_res"]}
    ).json()
    predictor = next(iter(client.served.values())).predictor
    predictor.set_image(pictures.read(picture, 10**6))
    arrays = np.array(POINT["points"], float), np.array(POINT["labels"])
    low = predictor.predict(*arrays, multimask_output=False)[2]
    masks = predictor.predict(*arrays, mask_input=low, multimask_output=False)[0]
    assert np.array_equal(mask_of(second["masks"][0]["segmentation"]), masks[0])


def test_labels_may_be_left_out_and_masks_may_be_three(client, picture):
    body = {"image": embedded(client, picture), "points": [[20, 24]], "multimask": True}
    answer = client.post("/v1/predict", json=body)
    assert len(answer.json()["masks"]) == 3
    named = client.post("/v1/predict", json={**body, "labels": [1]}).json()["masks"]
    assert named == answer.json()["masks"]


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", ""])
def test_pictures_may_come_with_the_question(client, picture, prefix):
    text = prefix + base64.b64encode(picture).decode()
    found = client.post("/v1/predict", json={"image": text, **POINT}).json()
    assert np.array_equal(mask_of(found["masks"][0]["segmentation"]), wanted(client, picture, **POINT)[0][0])
    assert found["image"] == pictures.id_of(picture)


@pytest.mark.parametrize("encoding", ["png", "coco_rle"])
def test_masks_come_in_other_forms(client, picture, encoding):
    body = {"image": embedded(client, picture), **POINT, "encoding": encoding}
    [row] = client.post("/v1/predict", json=body).json()["masks"]
    if encoding == "png":
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["png"]))))
    else:
        found = pytest.importorskip("pycocotools.mask").decode(row["segmentation"]).astype(bool)
    assert np.array_equal(found, wanted(client, picture, **POINT)[0][0])


def test_everything_is_the_generators(client, picture):
    body = {"image": embedded(client, picture), "points_per_side": 4, "min_iou": 0, "min_stability": 0}
    found = client.post("/v1/everything", json=body).json()
    predictor = next(iter(client.served.values())).predictor
    generator = AutomaticMaskGenerator(predictor, 4, pred_iou_thresh=0, stability_score_thresh=0)
    records = generator.generate(pictures.read(picture, 10**6))
    assert len(found["masks"]) == len(records) > 0
    for row, record in zip(found["masks"], records):
        assert np.array_equal(mask_of(row["segmentation"]), record["segmentation"])


def test_everything_embeds_a_picture_that_is_there_no_second_time(client, picture):
    body = {"image": embedded(client, picture), "points_per_side": 2, "min_iou": 0, "min_stability": 0}
    served = next(iter(client.served.values()))
    with mock.patch.object(served.predictor.model.encoder, "infer", side_effect=AssertionError("embedded again")):
        found = client.post("/v1/everything", json=body).json()
    assert found["cached"] and found["embed_ms"] == 0 and found["masks"]
    new = base64.b64encode(png(40, 30, 7)).decode()
    assert not client.post("/v1/everything", json={**body, "image": new}).json()["cached"]


def test_an_embedding_is_a_numpy_file(client, picture):
    answer = client.post("/v1/embed?format=npy", content=picture)
    found = np.load(io.BytesIO(answer.content), allow_pickle=False)
    [embedding] = next(iter(client.served.values())).predictor.embed([pictures.read(picture, 10**6)])
    assert np.array_equal(found, embedding.features)


def test_a_picture_is_embedded_once(serving, picture):
    client = serving()
    first, second = (client.post("/v1/embed", content=picture).json() for _ in range(2))
    assert (first["cached"], second["cached"]) == (False, True)
    figures = client.get("/metrics").text
    assert "structsam_embedding_hits_total 1.0" in figures
    assert "structsam_embedding_misses_total 1.0" in figures


def test_the_cache_has_a_bound(serving):
    """Two embeddings of 8 x 6 x 6 floats fit into half of it, three do not; a forgotten one is made again."""
    client = serving(cache_bytes=6_000)
    names = [embedded(client, png(16, 16, seed)) for seed in range(3)]
    kept = client.app.state.api.segmenter
    assert kept.embeddings.bytes <= 3_000 and len(kept.embeddings) == 2
    assert kept.files.bytes <= 3_000
    answer = client.post("/v1/predict", json={"image": names[-1], "points": [[3, 3]]})
    assert answer.json()["cached"]


def test_a_forgotten_picture_is_said_so(serving, picture):
    client = serving(cache_bytes=0)
    answer = client.post("/v1/predict", json={"image": embedded(client, picture), **POINT})
    assert answer.status_code == 404 and "Send it to /v1/embed again" in answer.json()["error"]


# ---- For the page


def test_a_browser_gets_the_decoder_and_the_embedding(client, picture, tiny):
    name = embedded(client, picture)
    found = client.get("/v1/embedding", params={"image": name})
    served = next(iter(client.served.values()))
    [embedding] = served.predictor.embed([pictures.read(picture, 10**6)])
    assert found.content == embedding.features.astype("<f4").tobytes()
    assert client.get("/v1/embedding", params={"image": "0" * 64}).status_code == 404
    assert client.get("/v1/embedding", params={"image": "../x"}).status_code == 422
    assert client.get("/v1/decoder").content == (tiny / "decoder.onnx").read_bytes()
    assert client.get("/v1/decoder", params={"export": "../x"}).status_code == 404
    [about] = client.get("/v1/exports").json()["exports"]
    assert about["browser_decoder"] and about["low_res"] == [24, 24]


def test_webassembly_is_what_npm_has(client):
    """Every file of the package has the hash that was recorded when it came from npm, packed or not."""
    recorded = json.loads(VENDOR.read_text())
    assert set(recorded["sha256"]) == {
        path.name.removesuffix(".gz") for path in VENDOR.parent.iterdir() if ".mjs" in path.name or ".wasm" in path.name
    }
    for name, digest in recorded["sha256"].items():
        for accepted in ("gzip", "identity"):
            answer = client.get(f"/vendor/{name}", headers={"Accept-Encoding": accepted})
            assert hashlib.sha256(answer.content).hexdigest() == digest
            packed = name.endswith(".wasm") and accepted == "gzip"
            assert answer.headers.get("content-encoding") == ("gzip" if packed else None)
        assert answer.headers["content-type"].startswith(("text/javascript", "application/wasm"))
    assert client.get("/vendor/..%2Findex.html").status_code == 404
    assert client.get("/vendor/none.mjs").status_code == 404


def test_token_maps_come_once(client, picture):
    name = embedded(client, picture)
    first, second = (client.post("/v1/tokens", json={"image": name}).json() for _ in range(2))
    assert (first["cached"], second["cached"]) == (False, True) and first["layers"] == second["layers"]
    rows, columns = first["grid"]
    assert (rows, columns) == (5, 6)  # 48 x 64 px in a square of 96: 72 px are 4.5 tokens
    for layer in first["layers"]:
        assert len(layer["groups"]) == rows * columns and set(layer["groups"]) == set(range(max(layer["groups"]) + 1))
    assert any(len(set(layer["groups"])) < rows * columns for layer in first["layers"])
    assert client.post("/v1/tokens", json={"image": "0" * 64}).status_code == 404


# ---- X-AnyLabeling


def test_xanylabeling_lists_models_and_gets_polygons(client, picture):
    models = client.get("/v1/models").json()["data"]
    [name] = models
    assert {widget["name"] for widget in models[name]["widgets"]} >= {"button_add_point", "button_add_rect"}
    marks = [{"type": "rectangle", "data": [40, 30, 5, 6], "label": 1}, {"type": "point", "data": [20, 24], "label": 1}]
    body = {
        "model": name,
        "image": "data:image/png;base64," + base64.b64encode(picture).decode(),
        "params": {"conf_threshold": 0, "iou_threshold": 0, "epsilon_factor": 0.0, "marks": marks},
    }
    data = client.post("/v1/predict", json=body, headers={"Token": ""}).json()["data"]
    mask = wanted(client, picture, points=[[20, 24]], labels=[1], box=[5, 6, 40, 30])[0][0]
    for shape, line in zip(data["shapes"], polygons(mask, 0.0)):
        assert shape["shape_type"] == "polygon" and shape["label"]
        assert shape["points"] == [*line, line[0]]
    assert len(data["shapes"]) == len(polygons(mask, 0.0)) > 0


def test_xanylabeling_without_marks_gets_no_shapes(client, picture):
    body = {"model": "tiny-for-servers", "image": base64.b64encode(picture).decode(), "params": {}}
    assert client.post("/v1/predict", json=body).json()["data"]["shapes"] == []


def test_polygons_outline_their_mask():
    y, x = np.mgrid[:60, :80]
    mask = (x - 40) ** 2 + (y - 30) ** 2 < 400
    mask[28:32, 38:42] = False  # a hole
    mask[2, 2] = True  # a speck
    [line] = polygons(mask, 0.002)
    from PIL import ImageDraw

    drawn = Image.new("1", (80, 60))
    ImageDraw.Draw(drawn).polygon([tuple(corner) for corner in line], fill=1)
    filled = np.asarray(drawn) | False
    mask[28:32, 38:42] = True
    mask[2, 2] = False
    assert (filled & mask).sum() / (filled | mask).sum() > 0.95
    assert len(line) < 60
    assert polygons(np.zeros((5, 5), bool), 0.1) == []


def test_simplified_lines_keep_what_is_far():
    line = np.array([[0, 0], [1, 0.01], [2, 0], [3, 5], [4, 0]], float)
    assert simplified(line, 0.1).tolist() == [[0, 0], [2, 0], [3, 5], [4, 0]]


# ---- The description


def test_openapi_describes_what_is_answered(client, picture):
    document = client.get("/openapi.json").json()
    assert document == openapi.document()
    routes = {route.path for route in client.app.routes if route.name != "page"}
    assert set(document["paths"]) == routes
    name = embedded(client, picture)
    schemas = document["components"]["schemas"]
    grid = {"points_per_side": 2, "min_iou": 0, "min_stability": 0}
    asked = {
        "Embedded": client.post("/v1/embed", content=picture),
        "Predicted": client.post("/v1/predict", json={"image": name, **POINT}),
        "Everything": client.post("/v1/everything", json={"image": name, **grid}),
        "Tokens": client.post("/v1/tokens", json={"image": name}),
        "Failure": client.post("/v1/predict", json={}),
    }
    for kind, answer in asked.items():
        assert set(answer.json()) == set(schemas[kind]["required"]), kind
        for mask in answer.json().get("masks", []):
            assert set(schemas["Mask"]["required"]) <= set(mask) <= set(schemas["Mask"]["properties"])


def test_exports_tell_of_themselves(client):
    [about] = client.get("/v1/exports").json()["exports"]
    assert (about["method"], about["rate"], about["backend"]) == ("structsam", 0.5, "onnxruntime")
    assert client.get("/healthz").json()["status"] == "ok"
