"""segment-anything-onnx."""

from drive import drive, marks
from segment_anything_onnx.sam_onnx import SegmentAnythingONNX


def make(pack):
    sam = SegmentAnythingONNX(str(pack / "encoder.onnx"), str(pack / "decoder.onnx"))

    def client(image):
        embedding = sam.encode(image)
        return lambda prompt: {"mask": sam.predict_masks(embedding, marks(prompt))[0, 0] > 0}

    return client


drive("segment-anything-onnx", make)
