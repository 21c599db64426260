"""Train the bundled demo model: one seeded run in three rounds.

    scripts/fetch_demo_data.sh DATA
    python scripts/train_demo.py DATA --out demo.safetensors
    python scripts/train_demo.py DATA --evaluate demo.safetensors

The prompt encoder and mask decoder start from LiteMedSAM's (Apache-2.0); the image encoder starts from nothing.
First it learns dense targets alone (object or background, edges, the way to the object's centre), which costs a
third of a full step and gives every token something to learn; without it, 900 steps of masks reached .48 mean IoU.
Then each step encodes a few scenes once and trains on several of their objects, prompted by a jittered box or by
one point. Loss: 20 x focal + dice, the squared error of the IoU prediction (SAM, appendix A), and the dense loss.
Weights are an exponential moving average, stored as FP16.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from demo_scenes import SceneGenerator

from structsam_export.models.demo import build_demo

EVALUATION_SEEDS = range(10_000_000, 10_000_120)


@dataclass(frozen=True)
class Round:
    """`steps` steps on `scenes` scenes of `size` px with `prompts` prompts each, from `lr` down to `lr_end`.

    No prompts: the encoder learns the dense targets alone.
    """

    size: int
    steps: int
    scenes: int
    prompts: int
    lr: float
    lr_end: float


ROUNDS = (
    Round(384, 800, 8, 0, 1e-3, 8e-4),
    Round(384, 700, 6, 6, 8e-4, 4e-4),
    Round(512, 900, 4, 6, 5e-4, 2e-5),
    Round(512, 300, 4, 6, 3e-4, 5e-5),
    Round(512, 300, 4, 6, 2e-4, 5e-6),
)


class Batches(torch.utils.data.IterableDataset):
    """Batches of one round: images (N, 3, s, s), dense targets, masks (N, P, s, s), prompts (N, P, 2, 2), labels."""

    def __init__(self, root: str, plan: Round, start: int) -> None:
        self.root, self.plan, self.start = root, plan, start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        scenes = SceneGenerator(self.root, held_out=False)
        for step in range(self.start, self.start + self.plan.steps):
            rows = []
            for i in range(self.plan.scenes):
                seed = step * 64 + i
                rows.append(sample(scenes.scene(seed, self.plan.size), self.plan.prompts, seed))
            yield tuple(torch.stack(column) for column in zip(*rows))


def sample(scene: Any, prompts: int, seed: int) -> list[torch.Tensor]:
    """Draw `prompts` objects of a scene, each with a jittered box (70 %) or one inner point (30 %)."""
    image = torch.from_numpy(scene.image).permute(2, 0, 1)
    if prompts == 0:
        return [image, dense_targets(scene.masks)]
    gen = np.random.default_rng(seed)
    chosen = gen.choice(len(scene.masks), prompts, replace=len(scene.masks) < prompts)
    coords, labels = [], []
    for mask in scene.masks[chosen]:
        if gen.random() < 0.7:
            box = box_of(mask)
            side = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            box = box + gen.normal(0, 0.05, 4).clip(-0.1, 0.1) * side
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


def mask_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """20 x focal + dice of each mask; logits and soft target (..., h, w) -> (...)."""
    prob = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    hit = prob * target + (1 - prob) * (1 - target)
    focal = ((0.25 * target + 0.75 * (1 - target)) * ce * (1 - hit) ** 2).mean((-2, -1))
    overlap = (prob * target).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (prob.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 20 * focal + dice


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
        target = F.interpolate(mask[:, None].float(), logits.shape[-2:], mode="area").expand_as(logits)
        loss = mask_loss(logits, target)
        with torch.no_grad():
            got, want = logits > 0, target > 0.5
            true_iou = (got & want).sum((-2, -1)) / (got | want).sum((-2, -1)).clamp(min=1)
        best = loss[:, 1:].argmin(1, keepdim=True)
        multi = loss[:, 1:].gather(1, best)[:, 0]
        is_point = (label[:, 0] == 1).float()
        total = total + (loss[:, 0] + 0.5 * is_point * multi).mean() + F.mse_loss(iou, true_iou)
    return total / len(images) + 0.5 * extra


@torch.no_grad()
def evaluate(sam: Any, root: str, seeds: range, size: int = 512) -> dict[str, float]:
    """Mean IoU over every object of held-out scenes, boxes and points, beside the box-filled baseline."""
    scenes = SceneGenerator(root, held_out=True)
    boxes, points, filled, thin = [], [], [], []
    for seed in seeds:
        scene = scenes.scene(seed, size)
        gen = np.random.default_rng(seed)
        embedding = encode(sam, torch.from_numpy(scene.image).permute(2, 0, 1)[None])[0]
        for mask, kind in zip(scene.masks, scene.kinds):
            box = box_of(mask)
            ys, xs = np.nonzero(mask)
            k = gen.integers(len(ys))
            place = torch.tensor(np.stack([box.reshape(2, 2), [[xs[k], ys[k]], [0, 0]]]) / size).float()
            logits, _ = decode(sam, embedding, place, torch.tensor([[2, 3], [1, -1]]))
            logits = F.interpolate(logits[:, :1].float(), (size, size), mode="bilinear", align_corners=False)
            got = (logits[:, 0] > 0).numpy()
            area = np.zeros_like(mask)
            area[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
            boxes.append(iou_of(got[0], mask))
            points.append(iou_of(got[1], mask))
            filled.append(iou_of(area, mask))
            if kind == "thin":
                thin.append(boxes[-1])
    return {
        "masks": len(boxes),
        "box": float(np.mean(boxes)),
        "box filled": float(np.mean(filled)),
        "thin, box": float(np.mean(thin)),
        "point": float(np.mean(points)),
    }


def iou_of(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def initial_model(root: str) -> Any:
    """Random encoder; prompt encoder and mask decoder of LiteMedSAM."""
    torch.manual_seed(0)
    sam = build_demo()
    torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    state = torch.load(Path(root) / "lite_medsam.pth", weights_only=True)
    sam.load_state_dict({k: v for k, v in state.items() if not k.startswith("image_encoder")}, strict=False)
    return sam


def optimizer_for(sam: Any) -> torch.optim.Optimizer:
    """AdamW; the ready-made decoder learns at half the encoder's rate."""
    groups: list[dict[str, Any]] = []
    for module, factor in ((sam.image_encoder, 1.0), (sam.prompt_encoder, 0.5), (sam.mask_decoder, 0.5)):
        matrices = [p for p in module.parameters() if p.ndim > 1]
        vectors = [p for p in module.parameters() if p.ndim <= 1]
        groups += [{"params": matrices, "factor": factor, "weight_decay": 0.05}]
        groups += [{"params": vectors, "factor": factor, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))


def train(root: str, out: Path, resume: Path | None) -> None:
    sam = initial_model(root)
    average = build_demo()
    average.load_state_dict(sam.state_dict())
    head = torch.nn.Conv2d(256, 16 * 4, 1)  # only helps training; not part of the model
    optimizer = optimizer_for(sam)
    optimizer.add_param_group({"params": list(head.parameters()), "factor": 1.0, "weight_decay": 0.0})
    done, began = 0, time.time()
    if resume is not None:
        state = torch.load(resume, weights_only=True)
        sam.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    start = 0
    for plan in ROUNDS:
        skip = min(max(done - start, 0), plan.steps)
        rest = Round(plan.size, plan.steps - skip, plan.scenes, plan.prompts, plan.lr, plan.lr_end)
        loader = torch.utils.data.DataLoader(
            Batches(root, rest, start + skip), batch_size=None, num_workers=1, prefetch_factor=6
        )
        running = 0.0
        for i, batch in enumerate(loader if rest.steps else ()):
            step = start + skip + i
            at = (skip + i) / plan.steps
            lr = plan.lr_end + 0.5 * (plan.lr - plan.lr_end) * (1 + math.cos(math.pi * at))
            lr *= min(1.0, (step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            with torch.autocast("cpu", torch.bfloat16):
                loss = step_loss(sam, head, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                decay = min(0.995, (step + 1) / (step + 10))
                for slow, fast in zip(average.parameters(), sam.parameters()):
                    slow.lerp_(fast, 1 - decay)
            running += loss.item()
            if (step + 1) % 50 == 0:
                print(
                    f"{time.time() - began:7.0f} s  {plan.size} px  step {step + 1}  loss {running / 50:.3f}",
                    flush=True,
                )
                running = 0.0
            if (step + 1) % 300 == 0:
                save(average, out)
                torch.save(
                    {
                        "model": sam.state_dict(),
                        "average": average.state_dict(),
                        "head": head.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": step + 1,
                    },
                    out.with_suffix(".resume.pt"),
                )
                if plan.prompts:
                    print(evaluate(average, root, EVALUATION_SEEDS[:24], plan.size), flush=True)
        start += plan.steps
    save(average, out)
    print(evaluate(load(out), root, EVALUATION_SEEDS))


def save(sam: Any, path: Path) -> None:
    save_file({k: v.half().contiguous() for k, v in sam.state_dict().items()}, path)


def load(path: Path) -> Any:
    sam = build_demo()
    sam.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return sam


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder made by fetch_demo_data.sh")
    parser.add_argument("--out", type=Path, default=Path("demo.safetensors"))
    parser.add_argument("--resume", type=Path, help="*.resume.pt written every 300 steps")
    parser.add_argument("--evaluate", type=Path, metavar="WEIGHTS", help="only measure these weights")
    args = parser.parse_args()
    if args.evaluate:
        print(evaluate(load(args.evaluate), args.data, EVALUATION_SEEDS))
    else:
        train(args.data, args.out, args.resume)


if __name__ == "__main__":
    main()
