"""Common to all drivers: reads a job, hands photos and prompts to one program, writes its masks.

Runs in the program's own environment: nothing of structsam-export is imported, NumPy is all it needs.

job.json: {"pack": folder, "photos": [{"image": FILE.npy (h, w, 3) uint8, "prompts": [{"points": [[x, y], ...],
"labels": [...]}, ...]}], "out": folder}; the answer: fed.I.npy (what the encoder got), mask.I.J.npy, about.json.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from onnxruntime.capi.onnxruntime_inference_collection import Session

fed = []
own_run = Session.run


def recorded_run(self, output_names, input_feed, *rest, **more):
    """`Session.run`; what encoders get is kept."""
    if len(input_feed) == 1:
        fed.append(np.asarray(next(iter(input_feed.values()))))
    return own_run(self, output_names, input_feed, *rest, **more)


def marks(prompt):
    """A prompt as samexporter and its descendants take it."""
    points, labels = prompt["points"], prompt["labels"]
    if labels == [2, 3]:
        return [{"type": "rectangle", "data": [*points[0], *points[1]]}]
    return [{"type": "point", "data": point, "label": label} for point, label in zip(points, labels)]


def drive(package, make):
    """Run a job.

    Args:
        package: the program's distribution, for its version; or the version itself, if it begins with a digit.
        make: pack folder -> (image -> (prompt -> {name: mask})).
    """
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    Session.run = recorded_run
    client = make(Path(job["pack"]))
    for i, photo in enumerate(job["photos"]):
        predict = client(np.load(photo["image"]))
        for j, prompt in enumerate(photo["prompts"]):
            for name, mask in predict(prompt).items():
                np.save(out / f"{name}.{i}.{j}.npy", np.asarray(mask, bool))
        np.save(out / f"fed.{i}.npy", fed[-1])
    about = {"version": package if package[0].isdigit() else version(package), "runs": len(fed)}
    (out / "about.json").write_text(json.dumps(about))
