"""Other people's programs on our packs, unmodified: their masks are ours.

`make test-clients`. Two gates for each program, plain and merged: from what the program fed its encoder, in its own
size of the resized photo, we draw masks that overlap its masks by .99 or more, each one; and it draws something. The
overlap with masks of our own resizing is in the table that is printed at the end and kept in `docs/packs.md`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from clients import environments, expected, table
from small_exports import rewritten

from structsam_export.packs import write_pack
from structsam_export.runtime.photos import bundled_photos

pytestmark = pytest.mark.clients
DRIVERS = Path(__file__).parent / "drivers"
KINDS = {"plain": {"method": "none"}, "merged": {"method": "structsam", "rate": 0.5}}
GATE = 0.99


def rounded(h, w, size=1024):
    return tuple(int(side * size / max(h, w) + 0.5) for side in (h, w))


def bankers(h, w, size=1024):
    """osam's."""
    return tuple(size if side == max(h, w) else round(side * size / max(h, w)) for side in (h, w))


def floored(h, w, size=1024):
    """transformers.js'."""
    return tuple(int(side * size / max(h, w)) for side in (h, w))


@pytest.fixture(scope="session", params=KINDS)
def exported(request, tmp_path_factory):
    """The 1024 px demo model as traced and rewritten, its folder, and our sessions."""
    import onnxruntime as ort

    folder = tmp_path_factory.mktemp("exports") / request.param
    rewritten(folder, model="demo-1024", **KINDS[request.param])
    parts = (ort.InferenceSession(str(folder / f"{part}.onnx")) for part in ("encoder", "decoder"))
    return request.param, folder, expected.Export(*parts, 1024)


@pytest.fixture(scope="session")
def photos():
    """Three bundled photos, one cut to odd sizes and one turned, with points, pairs of points and boxes inside."""
    made = []
    for photo, cut in zip(bundled_photos(3), ((None, None), (301, 437), (None, None))):
        image = photo.image[: cut[0], : cut[1]]
        if len(made) == 2:
            image = np.ascontiguousarray(image.transpose(1, 0, 2))
        h, w = image.shape[:2]
        points = [[w * 0.3, h * 0.4], [w * 0.62, h * 0.55]]
        prompts = [
            {"points": points[:1], "labels": [1]},
            {"points": points, "labels": [1, 0]},
            {"points": points, "labels": [1, 1]},
            {"points": [[w * 0.2, h * 0.25], [w * 0.7, h * 0.8]], "labels": [2, 3]},
        ]
        made.append({"image": np.ascontiguousarray(image), "prompts": prompts})
    return made


@pytest.fixture(scope="session")
def own(exported, photos):
    """What SamPredictor would draw with this export, by photo and prompt."""
    return [expected.our_own(exported[2], photo) for photo in photos]


def run(command, pack, photos, tmp_path, *rest):
    """A driver's answer: photo, prompt -> {name: mask}; photo -> what its encoder got; about."""
    out = tmp_path / "out"
    out.mkdir()
    for i, photo in enumerate(photos):
        np.save(tmp_path / f"{i}.npy", photo["image"])
    listed = [{"image": str(tmp_path / f"{i}.npy"), "prompts": photo["prompts"]} for i, photo in enumerate(photos)]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"pack": str(pack), "photos": listed, "out": str(out)}))
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COV_CORE_SOURCE")}
    ran = subprocess.run(
        [*map(str, command), str(job), *map(str, rest)], capture_output=True, text=True, timeout=500, env=variables
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    masks = {}
    for path in out.glob("*.*.*.npy"):
        name, i, j, _ = path.name.split(".")
        masks.setdefault((int(i), int(j)), {})[name] = np.load(path)
    return (
        masks,
        [np.load(out / f"fed.{i}.npy") for i in range(len(photos))],
        json.loads((out / "about.json").read_text()),
    )


def judge(client, version, kind, pairs, others, note):
    """Gate the overlaps, and keep the row of the table."""
    assert len(pairs) >= 12
    ours = [expected.iou(a, b) for a, b in pairs]
    raw = [expected.iou(a, b) for a, b in others]
    figures = {kind: f"{np.mean(ours):.4f} (min {min(ours):.4f})", f"{kind}, ours": f"{np.mean(raw):.3f}"}
    table.keep(client, {"version": version, **figures, "note": note})
    assert sum(bool(mask.any()) for mask, _ in pairs) >= 0.75 * len(pairs), "hardly anything was drawn"
    assert min(ours) >= GATE, ours


MIT = {
    "samexporter": ("run_samexporter.py", {}, rounded, "sizes and filter as ours"),
    "samexporter, HWC": ("run_samexporter.py", {"input": "hwc"}, rounded, "sizes and filter as ours"),
    "osam": ("run_osam.py", {}, bankers, "rounds halves to even"),
}


@pytest.mark.parametrize("client", MIT)
def test_nchw_programs(client, exported, photos, own, tmp_path):
    """Programs that resize photos as SAM does."""
    driver, options, size_of, note = MIT[client]
    kind, folder, ours = exported
    place = environments.folder_of("mit")
    pack = write_pack(folder, tmp_path / "pack", "meta", options).folder
    masks, fed, about = run([place / "bin" / "python", DRIVERS / driver], pack, photos, tmp_path)
    pairs, others = [], []
    for i, photo in enumerate(photos):
        size = size_of(*photo["image"].shape[:2])
        want = expected.drawn(ours, fed[i], photo, size, pad_boxes=True)
        for j, (single, _, there) in enumerate(want):
            pairs.append((masks[i, j]["mask"], expected.masks_of(single, there, 1024)[0]))
            others.append((masks[i, j]["mask"], own[i][j][0][0]))
    judge(client, about["version"], kind, pairs, others, note)


CANVAS = {
    "segment-anything-onnx": ("mit", "run_segment_anything_onnx.py", "meta", {"input": "hwc"}),
    "AnyLabeling": ("anylabeling", "run_anylabeling.py", "anylabeling", {}),
    "X-AnyLabeling": ("x-anylabeling", "run_x_anylabeling.py", "anylabeling", {}),
}


@pytest.mark.parametrize("client", CANVAS)
def test_canvas_programs(client, exported, photos, own, tmp_path):
    """Programs that put every photo on a canvas of 684 x 1024."""
    environment, driver, name, options = CANVAS[client]
    kind, folder, ours = exported
    place = environments.folder_of(environment)
    pack = write_pack(folder, tmp_path / "pack", name, options).folder
    command = [place / "bin" / "python", DRIVERS / driver]
    masks, fed, about = run(command, pack, photos, tmp_path, place / "unpacked")
    pairs, others, shown = [], [], []
    for i, photo in enumerate(photos):
        shape = photo["image"].shape[:2]
        scale = min(684 / shape[0], 1024 / shape[1])
        embedding = ours.embed(expected.square(fed[i], 1024))
        for j, prompt in enumerate(photo["prompts"]):
            points, labels = expected.padded(prompt, True)
            single = expected.chosen(*ours.logits(embedding, points * scale, labels), len(labels))
            want = expected.on_canvas(single, shape, scale, 1024)[0]
            pairs.append((masks[i, j]["mask"], want))
            others.append((masks[i, j]["mask"], own[i][j][0][0]))
            if "shown" in masks[i, j]:
                shown.append(expected.iou(masks[i, j]["shown"], want))
    judge(client, about["version"], kind, pairs, others, "684 x 1024 canvas, OpenCV's filter, boxes with padding point")
    if client == "AnyLabeling":
        assert len(shown) == len(pairs)
        assert np.median(shown) > 0.9, "polygons, which it simplifies, of which it leaves out small ones"


def test_transformers_js(exported, photos, own, tmp_path):
    """All three masks; a box as points of labels 2 and 3."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("transformers.js: Node is not installed")
    kind, folder, ours = exported
    place = environments.folder_of("node")
    pack = write_pack(folder, tmp_path / "packed", "hf").folder
    masks, fed, about = run([node, DRIVERS / "run_transformersjs.mjs"], pack, photos, tmp_path, place)
    pairs, others = [], []
    for i, photo in enumerate(photos):
        size = floored(*photo["image"].shape[:2])
        assert list(size) == about["sizes"][i]
        want = expected.drawn(ours, fed[i], photo, size, pad_boxes=False)
        for j, (_, logits, there) in enumerate(want):
            drawn = expected.masks_of(logits[1:], there, 1024)
            alone = expected.masks_of(own[i][j][1][1:], own[i][j][2], 1024)
            for k in range(3):
                pairs.append((masks[i, j][f"mask{k}"], drawn[k]))
                others.append((masks[i, j][f"mask{k}"], alone[k]))
    judge("transformers.js", about["version"], kind, pairs, others, "floors sizes, another filter")
