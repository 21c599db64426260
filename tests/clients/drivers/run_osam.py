"""osam (MIT), labelme's engine: a model of our own beside its built-in ones."""

import numpy as np
import onnxruntime
import osam
from drive import drive
from osam._models.sam._models import Sam


def make(pack):
    class Mine(Sam):
        name = "mine:latest"

        def __init__(self):
            parts = ("encoder", "decoder")
            self._inference_sessions = {p: onnxruntime.InferenceSession(str(pack / f"{p}.onnx")) for p in parts}

    model = Mine()

    def client(image):
        embedding = model.encode_image(image)

        def predict(prompt):
            asked = osam.types.Prompt(
                points=np.array(prompt["points"], np.float32), point_labels=np.array(prompt["labels"], np.int32)
            )
            request = osam.types.GenerateRequest(model="mine", image_embedding=embedding, prompt=asked)
            found = model.generate(request).annotations[0]
            box, mask = found.bounding_box, np.zeros(image.shape[:2], bool)
            mask[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = found.mask
            return {"mask": mask}

        return predict

    return client


drive("osam", make)
