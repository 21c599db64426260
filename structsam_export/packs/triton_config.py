"""`config.pbtxt` of every model of a Triton repository, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from structsam_export.packs.described import Signature
from structsam_export.packs.pbtxt import Name

if TYPE_CHECKING:
    from structsam_export.packs.base import Source

Config = dict[str, Any]
MAX_PIXELS = 1 << 27  # of a photo: 128 million
MAX_MASK_PIXELS = 1 << 28  # of all masks of a request: a byte each
QUEUED = 64  # requests that wait for a model; further ones are answered UNAVAILABLE
WAIT = 30_000_000  # microseconds after which a waiting request is given up
GATHER = 5_000  # microseconds that a batch waits to become full
TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL"}
# Where each backend's models run; the encoder and decoder of `onnxruntime` on a GPU if there is one.
KINDS = {"tensorrt": "KIND_GPU", "onnxruntime": "KIND_AUTO", "openvino": "KIND_CPU", "python": "KIND_CPU"}


def rows(signature: Signature) -> Config:
    """Inputs and outputs as `config.pbtxt` has them."""
    sides = {"input": signature.inputs, "output": signature.outputs}
    return {side: [row(*item) for item in tensors.items()] for side, tensors in sides.items()}


def row(name: str, about: tuple[str, list[int]], **more: Any) -> Config:
    """One input or output."""
    return {"name": name, "data_type": Name(TYPES[about[0]]), "dims": about[1], **more}


def common(name: str, backend: str, count: int = 1, batch: int = 0) -> Config:
    """What every model has. `max_batch_size: 0` means that dims hold the batch, if there is one."""
    return {
        "name": name,
        "backend": backend,
        "max_batch_size": batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"kind": Name(KINDS[backend]), "count": count}],
    }


def parameters(**values: int | str) -> Config:
    """What a Python model reads from its configuration."""
    return {"parameters": [{"key": k, "value": {"string_value": str(v)}} for k, v in values.items()]}


def queue(batch: int = 1) -> Config:
    """Requests beyond the queue are refused at once, those that wait too long later; images gather to batches."""
    policy = {
        "timeout_action": Name("REJECT"),
        "default_timeout_microseconds": WAIT,
        "allow_timeout_override": True,
        "max_queue_size": QUEUED,
    }
    gather = {"preferred_batch_size": [batch], "max_queue_delay_microseconds": GATHER} if batch > 1 else {}
    return {"dynamic_batching": {**gather, "default_queue_policy": policy}}


def warm_up(signature: Signature, name: str, dims: Mapping[str, list[int]], batch: int = 1) -> Config:
    """Two calls on zeros before a model counts as ready; `dims` are those of inputs that are free, or have a batch."""
    inputs = [
        {"key": key, "value": {"data_type": Name(TYPES[kind]), "dims": dims.get(key, shape), "zero_data": True}}
        for key, (kind, shape) in signature.inputs.items()
    ]
    return {"model_warmup": [{"name": name, "batch_size": batch, "count": 2, "inputs": inputs}]}


def graph_config(name: str, backend: str, signature: Signature, dims: Mapping[str, list[int]]) -> Config:
    """A model that is one graph or engine, of fixed or free dims, without a batch of its own."""
    threads = parameters(threads=1) if backend == "python" else {}
    return {**common(name, backend), **rows(signature), **threads, **warm_up(signature, "zeros", dims)}


def encoder_configs(backend: str, signature: Signature, batch: int) -> dict[str, Config]:
    """`sam_encoder` with cache and queue; of a fixed batch, in front of the graph that takes no fewer."""
    extras = {"response_cache": {"enable": True}, **queue(batch)}
    if batch == 1:
        return {"sam_encoder": {**graph_config("sam_encoder", backend, signature, {}), **extras}}
    one = Signature(*({n: (k, dims[1:]) for n, (k, dims) in v.items()} for v in (signature.inputs, signature.outputs)))
    return {
        "sam_encoder": {**common("sam_encoder", "python", batch=batch), **rows(one), **extras},
        "sam_encoder_fixed": graph_config("sam_encoder_fixed", backend, signature, {}),
    }


def decoder_config(backend: str, signature: Signature) -> Config:
    """`sam_decoder`; warmed up with a point and its padding point."""
    side = signature.inputs["mask_input"][1][-1]
    dims = {"point_coords": [1, 2, 2], "point_labels": [1, 2], "mask_input": [1, 1, side, side]}
    return graph_config("sam_decoder", backend, signature, dims)


PIXELS = ("uint8", [-1, -1, 3])


def front_configs(source: Source) -> dict[str, Config]:
    """What clients call: `sam_embed` (photo to embedding) and `sam` (photo and prompts to masks)."""
    size, side = source.size, source.mask_side
    prepared, embedding = ("float32", [1, 3, size, size]), ("float32", source.embedding)
    steps = [
        step("sam_preprocess", {"image": "image"}, {"prepared": "prepared"}),
        step("sam_encoder", {"image": "prepared"}, {"image_embeddings": "image_embeddings"}),
    ]
    prompts = {
        "point_coords": ("float32", [-1, -1, 2]),
        "point_labels": ("int64", [-1, -1]),
        "boxes": ("float32", [-1, 4]),
        "mask_input": ("float32", [-1, 1, side, side]),
        "multimask_output": ("bool", [1]),
    }
    found = {
        "masks": ("bool", [-1, -1, -1, -1]),
        "iou_predictions": ("float32", [-1, -1]),
        "low_res_masks": ("float32", [-1, -1, side, side]),
    }
    sizes = {"image_size": size, "mask_side": side}
    how = source.folder.preprocessing
    return {
        "sam_preprocess": {
            **common("sam_preprocess", "python"),
            **rows(Signature({"image": PIXELS}, {"prepared": prepared})),
            **parameters(image_size=size, preprocessing=how, max_pixels=MAX_PIXELS),
        },
        "sam_embed": {
            "name": "sam_embed",
            "platform": "ensemble",
            "max_batch_size": 0,
            "version_policy": {"latest": {"num_versions": 1}},
            **rows(Signature({"image": PIXELS}, {"image_embeddings": embedding})),
            "ensemble_scheduling": {"step": steps},
        },
        "sam": {
            **common("sam", "python", count=2),
            "input": [row("image", PIXELS), *(row(*item, optional=True) for item in prompts.items())],
            "output": [row(*item) for item in found.items()],
            **parameters(**sizes, preprocessing=how, max_mask_pixels=MAX_MASK_PIXELS),
            **queue(),
        },
    }


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> Config:
    """One model of an ensemble: its tensors -> the ensemble's."""
    maps = {"input_map": inputs, "output_map": outputs}
    return {
        "model_name": model,
        "model_version": -1,
        **{name: [{"key": k, "value": v} for k, v in pairs.items()] for name, pairs in maps.items()},
    }
