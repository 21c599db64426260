"""X-AnyLabeling (GPL-3.0): its `sam_onnx.py`, which needs nothing else of it, on the files that `config.yaml` names."""

import importlib.util
import sys
from pathlib import Path

import yaml
from drive import drive, marks

root = Path(sys.argv[2])  # where its wheel was unpacked
path = root / "anylabeling" / "services" / "auto_labeling" / "sam_onnx.py"
spec = importlib.util.spec_from_file_location("x_sam_onnx", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def make(pack):
    config = yaml.safe_load((pack / "config.yaml").read_text())
    names = (config["encoder_model_path"], config["decoder_model_path"])
    sam = module.SegmentAnythingONNX(*(str(pack / name) for name in names))

    def client(image):
        embedding = sam.encode(image)
        return lambda prompt: {"mask": sam.predict_masks(embedding, marks(prompt))[0, 0] > 0}

    return client


drive(next(root.glob("x_anylabeling_cvhub-*.dist-info")).name.split("-")[1].removesuffix(".dist"), make)
