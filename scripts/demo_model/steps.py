"""What one training step of the demo model is made of: prompts of a scene, the model's halves, the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

BOX_SHARE = 0.6  # of the prompts; the others are one point


def sample(scene: Any, prompts: int, seed: int) -> list[torch.Tensor]:
    """Draw `prompts` objects of a scene, each with a jittered box or one inner point.

    Image (3, s, s), dense targets, masks (P, s, s), coords (P, 2, 2) in [0, 1], labels (P, 2); no prompts: the
    first two only.
    """
    image = torch.from_numpy(scene.image).permute(2, 0, 1)
    if prompts == 0:
        return [image, dense_targets(scene.masks)]
    gen = np.random.default_rng(seed)
    chosen = gen.choice(len(scene.masks), prompts, replace=len(scene.masks) < prompts)
    coords, labels = [], []
    for mask in scene.masks[chosen]:
        if gen.random() < BOX_SHARE:
            box = box_of(mask)
            side = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            box = box + gen.normal(0, 0.03, 4).clip(-0.1, 0.1) * side
            coords.append(box.reshape(2, 2))
            labels.append([2, 3])
        else:
            ys, xs = np.nonzero(mask)
            k = gen.integers(len(ys))
            coords.append(np.array([[xs[k], ys[k]], [0, 0]], np.float64))
            labels.append([1, -1])
    size = scene.image.shape[0]
    return [
        image,
        dense_targets(scene.masks),
        torch.from_numpy(scene.masks[chosen]),
        torch.from_numpy(np.stack(coords) / size).float(),
        torch.tensor(labels),
    ]


def dense_targets(masks: np.ndarray) -> torch.Tensor:
    """(5, s/4, s/4): edge, object, way to its centre in x and y (in image sizes), where that way is defined."""
    size = masks.shape[-1]
    label = np.zeros((size, size), np.int64)
    ways = np.zeros((2, size, size), np.float32)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size
    for k, mask in enumerate(masks):
        label[mask] = k + 1
        ways[0][mask] = xs[mask].mean() - xs[mask]
        ways[1][mask] = ys[mask].mean() - ys[mask]
    edge = np.zeros((size, size), np.float32)
    edge[:-1] = label[1:] != label[:-1]
    edge[:, :-1] = np.maximum(edge[:, :-1], label[:, 1:] != label[:, :-1])
    edge = F.max_pool2d(torch.from_numpy(edge)[None], 4)
    inside = F.avg_pool2d(torch.from_numpy((label > 0).astype(np.float32))[None], 4)
    at = torch.from_numpy(ways[:, 2::4, 2::4].copy())
    return torch.cat([edge, inside, at, torch.from_numpy((label[2::4, 2::4] > 0).astype(np.float32))[None]])


def box_of(mask: np.ndarray) -> np.ndarray:
    """Tight box (x0, y0, x1, y1) of a boolean mask, in pixels."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64)


def encode(sam: Any, images: torch.Tensor) -> torch.Tensor:
    """SAM's encoder at any resolution: positions are interpolated from the 512 px grid."""
    encoder = sam.image_encoder
    x = encoder.patch_embed((images.float() - sam.pixel_mean) / sam.pixel_std)
    pos = encoder.pos_embed
    if pos.shape[1:3] != x.shape[1:3]:
        pos = F.interpolate(pos.permute(0, 3, 1, 2), x.shape[1:3], mode="bilinear", antialias=True)
        pos = pos.permute(0, 2, 3, 1)
    x = x + pos
    for block in encoder.blocks:
        x = block(x)
    return encoder.neck(x.permute(0, 3, 1, 2))


def decode(sam: Any, embedding: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All four masks (P, 4, 4h, 4w) and predicted IoUs (P, 4) of one embedding (256, h, w), coords in [0, 1]."""
    encoder = sam.prompt_encoder
    h, w = embedding.shape[-2:]
    table = [encoder.not_a_point_embed, *encoder.point_embeddings]
    kind = torch.cat([e.weight for e in table])[labels + 1]
    with torch.autocast("cpu", enabled=False):  # eight bits of mantissa would move a prompt by a pixel or two
        place = encoder.pe_layer._pe_encoding(coords.float())
        image_pe = encoder.pe_layer((h, w))[None]
    sparse = place * (labels >= 0)[..., None] + kind
    dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(coords), -1, h, w)
    return sam.mask_decoder.predict_masks(
        image_embeddings=embedding[None],
        image_pe=image_pe,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )


def around(target: torch.Tensor, margin: int = 3) -> torch.Tensor:
    """1 inside each mask's box plus `margin` low-resolution pixels, 0 elsewhere; (..., h, w) -> (..., h, w)."""
    on = target > 0
    rows, columns = on.any(-1).float(), on.any(-2).float()
    grown = []
    for line in (rows, columns):
        line = F.max_pool1d(line.reshape(-1, 1, line.shape[-1]), 2 * margin + 1, 1, margin).reshape(line.shape)
        # between the first and the last
        grown.append(((line.cumsum(-1) > 0) & (line.flip(-1).cumsum(-1).flip(-1) > 0)).float())
    return grown[0][..., :, None] * grown[1][..., None, :]


def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """10 x focal + dice + cross entropy around the object; logits and soft target (P, 4 or 1, h, w) -> (P, 4).

    The last is a mean over the object's own box, so that small and thin objects weigh as much as large ones.
    """
    prob = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    hit = prob * target + (1 - prob) * (1 - target)
    focal = ((0.25 * target + 0.75 * (1 - target)) * ce * (1 - hit) ** 2).mean((-2, -1))
    overlap = (prob * target).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (prob.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    near = around(target)
    local = (ce * near).sum((-2, -1)) / near.sum((-2, -1)).clamp(min=1)
    return 10 * focal + dice + local


def dense_loss(head: Any, embedding: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Edge and object as binary cross entropy, the way to the centre as L1; embedding (N, C, h, w)."""
    got = F.pixel_shuffle(head(embedding), 4).float()
    flags = F.binary_cross_entropy_with_logits(got[:, :2], target[:, :2])
    known = target[:, 4:]
    ways = ((got[:, 2:] - target[:, 2:4]).abs() * known).sum() / (2 * known.sum()).clamp(min=1)
    return flags + 3 * ways


def step_loss(sam: Any, head: Any, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Loss of one batch: dense targets; the single mask of every prompt; the best of three as well for points."""
    images, dense, *prompts = batch
    embeddings = encode(sam, images)
    extra = dense_loss(head, embeddings, dense)
    if not prompts:
        return extra
    masks, coords, labels = prompts
    total = torch.zeros(())
    for embedding, mask, place, label in zip(embeddings, masks, coords, labels):
        logits, iou = decode(sam, embedding, place, label)
        logits, iou = logits.float(), iou.float()
        target = F.interpolate(mask[:, None].float(), logits.shape[-2:], mode="area")
        loss = mask_loss(logits, target)
        with torch.no_grad():
            got, want = logits > 0, target > 0.5
            true_iou = (got & want).sum((-2, -1)) / (got | want).sum((-2, -1)).clamp(min=1)
        best = loss[:, 1:].argmin(1, keepdim=True)
        multi = loss[:, 1:].gather(1, best)[:, 0]
        is_point = (label[:, 0] == 1).float()
        total = total + (loss[:, 0] + 0.5 * is_point * multi).mean() + F.mse_loss(iou, true_iou)
    return total / len(images) + 0.25 * extra
