"""samexporter (MIT)."""

from drive import drive, marks
from samexporter.sam_onnx import SegmentAnythingONNX


def make(pack):
    sam = SegmentAnythingONNX(str(pack / "encoder.onnx"), str(pack / "decoder.onnx"), providers="cpu")

    def client(image):
        embedding = sam.encode(image[..., ::-1].copy())
        return lambda prompt: {"mask": sam.predict_masks(embedding, marks(prompt))[0, 0] > 0}

    return client


drive("samexporter", make)
