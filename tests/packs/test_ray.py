"""The pack for Ray Serve: what it holds, without Ray; tests/serve_ray runs it."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
import yaml

from structsam_export.errors import UsageError
from structsam_export.folder import ExportFolder
from structsam_export.packs import make_pack
from structsam_export.packs.base import Source


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_configuration_names_the_deployments_of_the_application(device, packed):
    _, pack = packed("ray", device=device)
    app = next(iter(yaml.safe_load((pack / "config.yaml").read_text())["applications"]))
    module, name = app["import_path"].split(":")
    tree = ast.parse((pack / f"{module}.py").read_text())
    classes = {n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.decorator_list}
    assert {d["name"] for d in app["deployments"]} == classes
    assert name in {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    wanted = {d["name"]: d["ray_actor_options"].get("num_gpus", 0) * d["num_replicas"] for d in app["deployments"]}
    assert sum(wanted.values()) == (device == "gpu"), "one GPU is enough"
    assert json.loads((pack / "sam.json").read_text())["device"] == device


def test_its_programs_need_nothing_of_ours(packed):
    _, pack = packed("ray")
    for path in pack.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # what is imported for types alone stands deeper
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in ("structsam_export", "torch")], path


def test_a_graph_for_the_cpu_is_refused_on_a_gpu(make_export):
    folder = ExportFolder.read(make_export())
    folder.manifest.config = replace(folder.config, form="ort-cpu")
    folder.write()
    assert make_pack("ray").refusal(Source.read(folder.path)) is None
    with pytest.raises(UsageError, match="--form ort-cpu"):
        make_pack("ray", {"device": "gpu"}).check(Source.read(folder.path))
