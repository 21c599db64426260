"""AnyLabeling (GPL-3.0): its model class, from `config.yaml`; the polygons it shows are kept beside its masks."""

import os

os.environ["QT_QPA_PLATFORM"] = "offscreen"

import cv2
import numpy as np
import yaml
from anylabeling.services.auto_labeling.segment_anything import SegmentAnything
from drive import drive, marks
from PyQt6.QtGui import QImage
from PyQt6.QtWidgets import QApplication

app = QApplication([])


def make(pack):
    path = pack / "config.yaml"
    model = SegmentAnything(yaml.safe_load(path.read_text()) | {"config_file": str(path)}, print)
    masks = []
    post_process = model.post_process

    def kept(mask, *rest, **more):
        masks.append(np.asarray(mask))
        return post_process(mask, *rest, **more)

    model.post_process = kept

    def client(image):
        h, w = image.shape[:2]
        picture = QImage(image.tobytes(), w, h, 3 * w, QImage.Format.Format_RGB888)
        picture = picture.convertToFormat(QImage.Format.Format_RGB32)
        name = f"{image.sum()}.png"

        def predict(prompt):
            model.set_auto_labeling_marks(marks(prompt))
            shapes = model.predict_shapes(picture, name).shapes
            drawn = np.zeros((h, w), np.uint8)
            polygons = [np.array([(p.x(), p.y()) for p in shape.points], np.int32) for shape in shapes]
            cv2.fillPoly(drawn, polygons, 1)
            mask = masks[-1]
            while mask.ndim > 2:
                mask = mask[0]
            return {"mask": mask > 0, "shown": drawn > 0}

        return predict

    return client


drive("anylabeling", make)
