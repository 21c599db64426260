"""Trains the demo model: seeded rounds, in the order of `rounds.ROUNDS`.

The prompt encoder and mask decoder start from LiteMedSAM's (Apache-2.0); the image encoder starts from nothing.
First it learns dense targets alone (object or background, edges, the way to the object's centre), which costs a
third of a full step and gives every token something to learn; without it, 900 steps of masks reached .48 mean IoU.
Then each step encodes a few scenes once and trains on several of their objects, prompted by a jittered box or by
one point. `SECOND` uses `hard` scenes and Muon on the matrices of the transformers. The bundled weights went through
all rounds; what differed in the first is in docs/demo-model.md.
Loss: `steps.mask_loss`, the squared error of the IoU prediction (SAM, appendix A), and the dense loss.
Weights are an exponential moving average, stored as FP16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from demo_model.figures import generated_figures
from demo_model.package import build_demo
from demo_model.rounds import FIRST, ROUNDS, Round
from demo_model.scenes import SceneGenerator
from demo_model.steps import sample, step_loss
from safetensors.torch import load_file, save_file

SAVE_EVERY = 100
THREADS = 2


class Batches(torch.utils.data.IterableDataset):
    """Batches of one round: images (N, 3, s, s), dense targets, masks (N, P, s, s), prompts (N, P, 2, 2), labels."""

    def __init__(self, root: str, plan: Round, start: int) -> None:
        self.root, self.plan, self.start = root, plan, start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        scenes = SceneGenerator(self.root, held_out=False, hard=self.plan.hard)
        for step in range(self.start, self.start + self.plan.steps):
            rows = []
            for i in range(self.plan.scenes):
                seed = step * 64 + i
                rows.append(sample(scenes.scene(seed, self.plan.size), self.plan.prompts, seed))
            yield tuple(torch.stack(column) for column in zip(*rows))


def initial_model(root: str) -> Any:
    """Random encoder; prompt encoder and mask decoder of LiteMedSAM."""
    torch.manual_seed(0)
    sam = build_demo()
    torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    state = torch.load(Path(root) / "lite_medsam.pth", weights_only=True)
    sam.load_state_dict({k: v for k, v in state.items() if not k.startswith("image_encoder")}, strict=False)
    return sam


class Trainer:
    """The model, its moving average, the dense head (helps training only) and the optimizers of one run."""

    def __init__(self, root: str, out: Path) -> None:
        self.root, self.out, self.step, self.began = root, out, 0, time.time()
        self.sam, self.average = initial_model(root), build_demo()
        self.average.load_state_dict(self.sam.state_dict())
        self.head = torch.nn.Conv2d(256, 16 * 4, 1)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.hard, self.since = False, 0
        # Two threads on half a batch each: two on one are a third slower, most operators are small.
        self.pool = ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,))

    def start_optimizers(self, hard: bool) -> None:
        """AdamW, the ready-made decoder at half the encoder's rate; if `hard`, Muon for the matrices of blocks."""
        self.hard = hard
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for name, p in self.sam.named_parameters():
            factor = 1.0 if name.startswith("image_encoder") else 0.5
            group = {"params": [p], "factor": factor, "weight_decay": 0.05 if p.ndim > 1 else 0.0}
            inner = (".blocks." in name or ".transformer." in name) and "rel_pos" not in name
            (matrices if hard and p.ndim == 2 and inner else others).append(group)
        others.append({"params": list(self.head.parameters()), "factor": 1.0, "weight_decay": 0.0})
        self.optimizers = [torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98))]
        if matrices:
            self.optimizers.append(torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw"))

    def run(self) -> None:
        start = 0
        for plan in ROUNDS:
            skip = min(max(self.step - start, 0), plan.steps)
            if skip < plan.steps:
                if not self.optimizers or plan.hard != self.hard:
                    self.start_optimizers(plan.hard)
                    self.since = start  # the learning rate warms up from here
                self.run_round(plan, start, skip)
            start += plan.steps
        save(self.average, self.out)

    def run_round(self, plan: Round, start: int, skip: int) -> None:
        """Steps `skip` and later of a round whose first step has the number `start`."""
        rest = replace(plan, steps=plan.steps - skip)
        loader = torch.utils.data.DataLoader(
            Batches(self.root, rest, start + skip), batch_size=None, num_workers=1, prefetch_factor=6
        )
        running = 0.0
        for i, batch in enumerate(loader, skip):
            lr = plan.lr_end + 0.5 * (plan.lr - plan.lr_end) * (1 + math.cos(math.pi * i / plan.steps))
            lr *= min(1.0, (start + i + 1 - self.since) / 100)
            running += self.learn(batch, lr)
            self.step = start + i + 1
            if self.step % 50 == 0:
                at = f"{time.time() - self.began:7.0f} s  {plan.size} px  step {self.step}"
                print(f"{at}  loss {running / 50:.3f}", flush=True)
                running = 0.0
            if self.step % SAVE_EVERY == 0:
                self.save_state()
                if plan.prompts and self.step % 500 == 0:
                    print(generated_figures(self.average, self.root, 16, plan.size), flush=True)

    def learn(self, batch: tuple[torch.Tensor, ...], lr: float) -> float:
        """One step at learning rate `lr`; the loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            optimizer.zero_grad()
        loss = sum(self.pool.map(self.share, *zip(*parts_of(batch))))
        torch.nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = min(0.998 if self.hard else 0.995, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.sam.parameters()), 1 - decay)
        return loss

    def share(self, part: tuple[torch.Tensor, ...], weight: float) -> float:
        """Add the gradient of a part of a batch; its share of the loss."""
        with torch.autocast("cpu", torch.bfloat16):
            loss = step_loss(self.sam, self.head, part) * weight
        loss.backward()
        return loss.item()

    def save_state(self) -> None:
        save(self.average, self.out)
        state = {
            "model": self.sam.state_dict(),
            "average": self.average.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "hard": self.hard,
            "since": self.since,
        }
        path = self.out.with_suffix(".resume.pt")
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load_state(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.sam.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.head.load_state_dict(state["head"])
        self.step, self.since = state["step"], state["since"]
        self.start_optimizers(state["hard"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(kept)

    def start_from(self, path: Path) -> None:
        """Skip the first rounds: their published weights are the model and its average."""
        self.sam.load_state_dict(load(path).state_dict())
        self.average.load_state_dict(self.sam.state_dict())
        self.step = sum(plan.steps for plan in FIRST)


def parts_of(batch: tuple[torch.Tensor, ...]) -> list[tuple[list[torch.Tensor], float]]:
    """A batch in parts for the threads, each with its share of the images."""
    parts = zip(*(torch.tensor_split(x, THREADS) for x in batch))
    return [(list(part), len(part[0]) / len(batch[0])) for part in parts]


def save(sam: Any, path: Path) -> None:
    save_file({k: v.half().contiguous() for k, v in sam.state_dict().items()}, path)


def load(path: Path) -> Any:
    sam = build_demo()
    sam.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return sam
