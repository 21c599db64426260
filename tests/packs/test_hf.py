"""The folder for transformers.js, against SAM's own modules; weights beside; FP16."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from pack_files import inputs_of, run
from tiny_model import DIM, IMAGE, OUT, PATCH

from structsam_export.folder import ExportFolder
from structsam_export.packs import write_pack

GRID, SIDE = IMAGE // PATCH, 4 * IMAGE // PATCH


def three_masks(sam, embedding, points, labels):
    """(P, 3, ...) logits and (P, 3) IoUs of SAM's modules; label -10 is a zero vector, padded unless there is a box."""
    prompt = sam.prompt_encoder
    rows = []
    for coords, kinds in zip(points, labels):
        if 2 not in labels:
            coords, kinds = np.concatenate([coords, [[0, 0]]]), np.concatenate([kinds, [-1]])
        vectors = []
        for place, kind in zip(coords, kinds):
            point = (torch.tensor(place, dtype=torch.float32)[None, None], torch.tensor([[max(int(kind), -1)]]))
            vector = prompt._embed_points(*point, pad=False)
            if kind >= 2:
                vector = prompt._embed_boxes(torch.tensor([[*place, *place]], dtype=torch.float32))[:, [int(kind) - 2]]
            vectors.append(torch.zeros_like(vector) if kind == -10 else vector)
        dense = prompt.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, GRID, GRID)
        rows.append(
            sam.mask_decoder(
                image_embeddings=torch.as_tensor(embedding),
                image_pe=prompt.get_dense_pe(),
                sparse_prompt_embeddings=torch.cat(vectors, 1),
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        )
    return [np.concatenate([row[i].numpy() for row in rows]) for i in (0, 1)]


def test_the_decoder_is_that_of_optimum(packed, sam):
    folder = packed("hf")[1]
    path = folder / "onnx" / "prompt_encoder_mask_decoder.onnx"
    assert list(inputs_of(path)) == ["image_embeddings", "image_positional_embeddings", "input_points", "input_labels"]
    assert inputs_of(path)["input_labels"][0] == "tensor(int64)"
    rng = np.random.default_rng(0)
    embedding = np.float32(rng.normal(size=(1, OUT, GRID, GRID)))
    for labels in ([[1]], [[1, 0, 1]], [[1, -10], [0, 1]], [[2, 3]], [[2, 3], [2, 3]], [[1, 2, 3]]):
        points = np.float32(rng.uniform(0, IMAGE, (*np.shape(labels), 2)))
        feeds = {"input_points": points[None], "input_labels": np.int64(labels)[None]}
        feeds |= {"image_embeddings": embedding, "image_positional_embeddings": np.zeros_like(embedding)}
        found = run(path, feeds)
        assert list(found) == ["iou_scores", "pred_masks"]
        masks, ious = three_masks(sam, embedding, points, np.array(labels))
        assert found["pred_masks"].shape == (1, len(labels), 3, SIDE, SIDE)
        np.testing.assert_allclose(found["pred_masks"][0], masks, atol=1e-4 * abs(masks).max(), err_msg=str(labels))
        np.testing.assert_allclose(found["iou_scores"][0], ious, atol=1e-4)


def test_positions_and_configuration(packed, sam):
    export, folder = packed("hf")
    found = run(folder / "onnx" / "vision_encoder.onnx", {"pixel_values": np.zeros((1, 3, IMAGE, IMAGE), np.float32)})
    assert list(found) == ["image_embeddings", "image_positional_embeddings"]
    np.testing.assert_allclose(found["image_positional_embeddings"], sam.prompt_encoder.get_dense_pe(), atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["transformers.js_config"]) == ("sam", {"dtype": "fp32"})
    vision = config["vision_config"]
    assert (vision["image_size"], vision["hidden_size"], vision["mlp_dim"]) == (IMAGE, DIM, 4 * DIM)
    assert (vision["window_size"], vision["global_attn_indexes"], vision["output_channels"]) == (3, [1], OUT)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"longest_edge": IMAGE}
    assert processor["pad_size"] == {"height": IMAGE, "width": IMAGE}
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    assert processor["image_std"] == [0.229, 0.224, 0.225]


def test_weights_beside(make_export, tmp_path, monkeypatch):
    """As ViT-H's: the data file has transformers.js' name for it, and is the export's own."""
    folder = make_export()
    model = onnx.load(str(folder / "encoder.onnx"))
    (folder / "encoder.onnx").unlink()
    onnx.save(
        model,
        str(folder / "encoder.onnx"),
        save_as_external_data=True,
        location="encoder.onnx.data",
        size_threshold=1024,
    )
    opened = ExportFolder.read(folder)
    opened.add("encoder.onnx")
    opened.write()
    monkeypatch.setattr("structsam_export.rewrite.INLINE_LIMIT", 0)
    made = write_pack(folder, tmp_path / "pack", "hf").folder
    assert (made / "onnx" / "vision_encoder.onnx_data").read_bytes() == (folder / "encoder.onnx.data").read_bytes()
    assert not (made / "onnx" / "prompt_encoder_mask_decoder.onnx_data").exists()
    loads = json.loads((made / "config.json").read_text())["transformers.js_config"]
    assert loads["use_external_data_format"] == {"vision_encoder.onnx": 1}
    image = np.random.default_rng(0).normal(size=(1, 3, IMAGE, IMAGE)).astype(np.float32)
    want = run(folder / "encoder.onnx", {"image": image})["image_embeddings"]
    found = run(made / "onnx" / "vision_encoder.onnx", {"pixel_values": image})["image_embeddings"]
    np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("name", ["hf", "isaac-ros"])
def test_fp16_encoders_are_packed_as_they_are(name, make_export, any_size, tmp_path):
    """Typed graphs keep their types inside, float32 outside; transformers.js looks for the suffix."""
    folder = make_export("merged", precision="fp16")
    made = write_pack(folder, tmp_path / "pack", name).folder
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*.onnx"))
    if name == "hf":
        assert files == ["onnx/prompt_encoder_mask_decoder_fp16.onnx", "onnx/vision_encoder_fp16.onnx"]
        image = np.random.default_rng(0).normal(size=(1, 3, IMAGE, IMAGE)).astype(np.float32)
        want = run(folder / "encoder.onnx", {"image": image})["image_embeddings"]
        assert (run(made / files[1], {"pixel_values": image})["image_embeddings"] == want).all()
        assert json.loads((made / "config.json").read_text())["transformers.js_config"]["dtype"] == "fp16"
    kinds = {t.data_type for t in onnx.load(str(made / files[-1])).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
