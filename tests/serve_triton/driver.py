"""Runs in the server's environment: asks the server as tritonclient does. Usage: driver.py JOB RESULT

JOB is JSON: {"http", "grpc", "photo", "encoder_size", "prompts": [{name: values}]}; answers go to RESULT, an npz, and
what is told of them to stdout, as JSON.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

KINDS = {"point_coords": np.float32, "point_labels": np.int64, "boxes": np.float32}


def inputs(protocol, feeds):
    made = []
    for name, values in feeds.items():
        tensor = protocol.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def counts(client, model):
    row = client.get_inference_statistics(model)["model_stats"][0]
    stats = row["inference_stats"]
    return {
        "inferences": int(row["inference_count"]),
        "executions": int(row["execution_count"]),
        "hits": int(stats.get("cache_hit", {}).get("count", 0)),
        "misses": int(stats.get("cache_miss", {}).get("count", 0)),
    }


def code_of(client, model, feeds):
    """The gRPC status of a request: "OK", or what it is refused with."""
    try:
        client.infer(model, inputs(over_grpc, feeds))
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"[:300]
    return "OK"


def malformed(job, photo):
    """Requests that no model can answer -> what the server says."""
    client = over_grpc.InferenceServerClient(job["grpc"])
    box = {"boxes": np.zeros((1, 4), np.float32)}
    cases = {
        "no prompt": {"image": photo},
        "empty image": {"image": np.zeros((0, 0, 3), np.uint8), **box},
        "four colours": {"image": np.zeros((8, 8, 4), np.uint8), **box},
        "float image": {"image": photo.astype(np.float32), **box},
        "NaN": {"image": photo, "boxes": np.full((1, 4), np.nan, np.float32)},
        "a million points": {
            "image": photo,
            "point_coords": np.zeros((1, 10**6, 2), np.float32),
            "point_labels": np.ones((1, 10**6), np.int64),
        },
        "a million boxes": {"image": photo, "boxes": np.zeros((10**6, 4), np.float32)},
        "unknown input": {"image": photo, **box, "../../etc/passwd": np.zeros(1, np.float32)},
        "labels alone": {"image": photo, "point_labels": np.ones((1, 1), np.int64)},
    }
    return {name: code_of(client, "sam", feeds) for name, feeds in cases.items()}


def overflow(job, model, feeds, clients):
    """Many requests at once -> how many got which status."""
    client = over_grpc.InferenceServerClient(job["grpc"])
    with ThreadPoolExecutor(clients) as pool:
        said = list(pool.map(lambda given: code_of(client, model, given).split(":")[0], feeds))
    return {code: said.count(code) for code in set(said)}


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    photo, told, arrays = np.load(job["photo"]), {}, {}
    clients = {
        "http": over_http.InferenceServerClient(job["http"]),
        "grpc": over_grpc.InferenceServerClient(job["grpc"]),
    }
    for name, protocol in (("http", over_http), ("grpc", over_grpc)):
        for i, prompt in enumerate(job["prompts"]):
            feeds = {"image": photo, **{key: np.asarray(value, KINDS[key]) for key, value in prompt.items()}}
            answer = clients[name].infer("sam", inputs(protocol, feeds))
            for output in ("masks", "iou_predictions", "low_res_masks"):
                arrays[f"{name}.{i}.{output}"] = answer.as_numpy(output)
    client = clients["http"]
    told["encoder"] = counts(client, "sam_encoder")
    embedding = client.infer("sam_embed", inputs(over_http, {"image": photo})).as_numpy("image_embeddings")
    arrays["embedding"] = embedding
    told["after"] = counts(client, "sam_encoder")
    told["malformed"] = malformed(job, photo)
    side, seeds = job["encoder_size"], range(job["clients"])
    many = [{"image": np.random.default_rng(i).normal(size=(1, 3, side, side)).astype(np.float32)} for i in seeds]
    told["overflow"] = overflow(job, "sam_encoder", many, len(many))
    told["encoder_total"] = counts(client, "sam_encoder")
    noise = [np.random.default_rng(i).integers(0, 256, (60, 80, 3), np.uint8) for i in seeds]
    boxes = np.array([[1, 1, 50, 50]], np.float32)
    told["overflow_sam"] = overflow(job, "sam", [{"image": n, "boxes": boxes} for n in noise], len(noise))
    feeds = {"image": photo, **{key: np.asarray(v, KINDS[key]) for key, v in job["prompts"][0].items()}}
    arrays["last"] = client.infer("sam", inputs(over_http, feeds)).as_numpy("masks")
    np.savez(sys.argv[2], **arrays)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
