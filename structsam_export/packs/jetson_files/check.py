#!/usr/bin/env python3
"""Compares this device's engines with the export in FP32, by the gates of structsam-export. Needs numpy and tensorrt.

    python3 check.py                                  # encoder.engine, decoder.engine
    python3 check.py --runtime onnxruntime            # encoder.onnx, decoder.onnx, on any machine

Exit codes: 0 masks agree, 3 they do not, 4 a runtime is missing, 5 a file is missing or damaged.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PARITY, ENVIRONMENT, BAD_INPUT = 3, 4, 5


class Stop(Exception):
    """Ends the check with a message and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class OnnxGraph:
    """An ONNX file on ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise Stop(ENVIRONMENT, "onnxruntime is not installed: pip install onnxruntime") from None
        try:
            self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its kinds of errors have no common base
            raise Stop(BAD_INPUT, f"{path} cannot be loaded: {str(error)[:200]}") from None

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feeds)))


class Cuda:
    """Memory of the GPU, through CUDA's own library: no other package is needed."""

    TO_DEVICE, TO_HOST = 1, 2

    def __init__(self) -> None:
        for name in ("libcudart.so", "libcudart.so.12", "libcudart.so.13", "/usr/local/cuda/lib64/libcudart.so"):
            try:
                self.library = ctypes.CDLL(name)
                return
            except OSError:
                continue
        raise Stop(ENVIRONMENT, "libcudart.so is not found. Add CUDA's lib64 folder to LD_LIBRARY_PATH.")

    def done(self, status: int, what: str) -> None:
        """Stop where CUDA refuses."""
        if status:
            raise Stop(ENVIRONMENT, f"CUDA error {status} at {what}")

    def allocate(self, size: int) -> int:
        """Address of new memory."""
        address = ctypes.c_void_p()
        self.done(self.library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(max(size, 1))), "cudaMalloc")
        return int(address.value or 0)

    def copy(self, target: int, source: int, size: int, direction: int) -> None:
        """Copy and wait."""
        given = (ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(direction))
        self.done(self.library.cudaMemcpy(*given), "cudaMemcpy")

    def free(self, address: int) -> None:
        """Give memory back."""
        self.done(self.library.cudaFree(ctypes.c_void_p(address)), "cudaFree")

    def wait(self) -> None:
        """Until everything has run."""
        self.done(self.library.cudaDeviceSynchronize(), "cudaDeviceSynchronize")


class Engine:
    """A TensorRT engine."""

    def __init__(self, path: Path) -> None:
        try:
            import tensorrt as trt
        except ImportError:
            raise Stop(ENVIRONMENT, "Python has no tensorrt. Install python3-libnvinfer.") from None
        self.trt, self.cuda = trt, Cuda()
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.runtime = trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise Stop(BAD_INPUT, f"{path} is no engine of this TensorRT and this device. Run build.sh again.")
        self.context = self.engine.create_execution_context()

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name."""
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        outputs = [n for n in names if self.engine.get_tensor_mode(n) == self.trt.TensorIOMode.OUTPUT]
        held, found = {}, {}
        for name in [n for n in names if n not in outputs]:
            array = np.ascontiguousarray(feeds[name], self.trt.nptype(self.engine.get_tensor_dtype(name)))
            if not self.context.set_input_shape(name, array.shape):
                raise Stop(BAD_INPUT, f"the engine takes no {name} of shape {array.shape}")
            held[name] = self.cuda.allocate(array.nbytes)
            self.cuda.copy(held[name], array.ctypes.data, array.nbytes, Cuda.TO_DEVICE)
        for name in outputs:
            kind = self.trt.nptype(self.engine.get_tensor_dtype(name))
            found[name] = np.empty(tuple(self.context.get_tensor_shape(name)), kind)
            held[name] = self.cuda.allocate(found[name].nbytes)
        for name, address in held.items():
            self.context.set_tensor_address(name, address)
        if not self.context.execute_async_v3(0):
            raise Stop(PARITY, "the engine does not run")
        self.cuda.wait()
        for name, array in found.items():
            self.cuda.copy(array.ctypes.data, held[name], array.nbytes, Cuda.TO_HOST)
        for address in held.values():
            self.cuda.free(address)
        return found


RUNTIMES = {"tensorrt": (Engine, "engine"), "onnxruntime": (OnnxGraph, "onnx")}


def iou(first: Any, second: Any) -> float:
    """Intersection over union; two empty masks agree."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def decoder_feeds(embedding: Any, coords: Any, labels: Any) -> dict[str, Any]:
    """The decoder's inputs without a mask."""
    side = 4 * embedding.shape[-1]
    return {
        "image_embeddings": embedding,
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.zeros((len(coords), 1, side, side), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }


def compare(encoder: Any, decoder: Any, reference: Any, photos: int) -> dict[str, float]:
    """Worst error of embeddings, relative to the largest value, and overlap of all masks."""
    errors, ious = [], []
    for i in range(photos):
        wanted = reference[f"embedding.{i}"]
        embedding = encoder.run({"image": reference[f"image.{i}"]})["image_embeddings"].astype(np.float32)
        if embedding.shape != wanted.shape or not np.isfinite(embedding).all():
            raise Stop(PARITY, f"photo {i}: an embedding of another shape, or numbers that are not finite")
        errors.append(float(np.abs(embedding - wanted).max() / np.abs(wanted).max()))
        feeds = decoder_feeds(embedding, reference[f"coords.{i}"], reference[f"labels.{i}"])
        masks = decoder.run(feeds)["low_res_masks"]
        ious += [iou(a > 0, b > 0) for a, b in zip(masks[:, 0], reference[f"masks.{i}"][:, 0])]
    return {"max_rel": max(errors), "mask_iou_mean": float(np.mean(ious)), "mask_iou_min": min(ious)}


def broken(found: dict[str, float], gates: dict[str, float]) -> list[str]:
    """The gates that do not hold, in words."""
    return [
        f"{name} is {found[name]:.6g}, its gate {gate:g}"
        for name, gate in gates.items()
        if not (found[name] <= gate if name == "max_rel" else found[name] >= gate)
    ]


def check(runtime: str, folder: Path) -> int:
    """Run both parts on the reference, print what was found; the exit code.

    Raises:
        Stop: it cannot be judged.
    """
    load, ending = RUNTIMES[runtime]
    paths = [folder / name for name in ("kit.json", "reference.npz", f"encoder.{ending}", f"decoder.{ending}")]
    for path in paths:
        if not path.is_file():
            raise Stop(BAD_INPUT, f"{path} is missing." + (" Run build.sh." if path.suffix == ".engine" else ""))
    try:
        kit = json.loads(paths[0].read_text(encoding="utf-8"))
        reference = dict(np.load(paths[1], allow_pickle=False))
        gates, photos = kit["gates"], int(kit["photos"])
    except Exception as error:  # a damaged archive raises whatever its reader meets
        raise Stop(BAD_INPUT, f"kit.json or reference.npz is damaged: {error}") from None
    found = compare(load(paths[2]), load(paths[3]), reference, photos)
    print(json.dumps({"runtime": runtime, **found, "gates": gates}, indent=2))
    wrong = broken(found, gates)
    for line in wrong:
        print(f"FAILED: {line}", file=sys.stderr)
    return PARITY if wrong else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="tensorrt")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the kit is")
    asked = parser.parse_args()
    try:
        return check(asked.runtime, asked.folder)
    except Stop as error:
        print(error, file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
