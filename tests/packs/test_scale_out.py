"""docs/serving.md, "Scale-out": what it says of Triton and KServe fits the pack for Triton."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from google.protobuf import text_format

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text().split("## Scale-out")[1]


def test_the_service_of_kserve_serves_the_pack(packed):
    """Its schema: https://kserve.github.io/website, v1beta1 InferenceService, with Triton's runtime."""
    _, pack = packed("triton")
    service = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    predictor = service["spec"]["predictor"]
    assert 1 <= predictor["minReplicas"] <= predictor["maxReplicas"]
    model = predictor["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert model["protocolVersion"] == "v2", "Triton's runtime has no v1"
    assert set(model) <= {
        *("modelFormat", "protocolVersion", "runtimeVersion", "storageUri", "args", "resources", "runtime", "env")
    }
    scheme, place = model["storageUri"].split("://")
    assert scheme in ("pvc", "s3", "gs", "https", "hf", "oci")
    # The runtime's --model-store is the folder that storageUri names: models lie in it, each with its version.
    models = pack / Path(place).name
    assert {p.name for p in models.iterdir()} == {"sam", "sam_embed", "sam_encoder", "sam_decoder", "sam_preprocess"}
    for folder in models.iterdir():
        assert (folder / "config.pbtxt").is_file() and (folder / "1").is_dir()
    for argument in model["args"]:
        assert argument in (pack / "README.md").read_text()
    assert "/v2/models/sam/infer" in PAGE


def test_an_instance_group_is_one_of_triton_s():
    from tritonclient.grpc import model_config_pb2

    text = re.search(r"```\n(instance_group .*?)```", PAGE, re.DOTALL)[1]
    group = text_format.Parse(text, model_config_pb2.ModelConfig()).instance_group[0]
    assert (group.count, list(group.gpus)) == (2, [0, 1])
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
