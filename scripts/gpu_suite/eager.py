"""PyTorch on the GPU, without any export: what engines have to beat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

from gpu_suite import Options
from gpu_suite.exports import inputs_of, load, parity, schedule_of, tf32
from gpu_suite.timing import measure, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

# Name -> what it is; of a patched model the method is told besides.
KINDS = {
    "stock": "segment_anything's encoder as it is",
    "sdpa": "stock, with scaled_dot_product_attention in its blocks",
    "compiled": "stock, through torch.compile",
    "compiled-graph": "stock, through torch.compile(mode='reduce-overhead'), which replays CUDA graphs",
    "patched": "with merged tokens",
}


def eager(options: dict[str, Any], model: str, kind: str, precision: str, method: str = "none") -> dict[str, Any]:
    """Parity and latency of an encoder in PyTorch.

    Args:
        options: of the suite.
        model: name of the model.
        kind: one of KINDS.
        precision: "fp32"; "tf32", the same with TF32 in products; or "fp16", all weights and activations.
        method: of kind "patched".
    """
    import torch

    given = Options.from_dict(options)
    encoder, schedule = load(given, model).sam.image_encoder, schedule_of(given, model, method)
    images = [torch.as_tensor(ready.tensor) for ready in inputs_of(given, model).prepared]
    tf32(precision == "tf32")
    kind_of = torch.float16 if precision == "fp16" else torch.float32
    with ExitStack() as changed, torch.no_grad():
        changed.callback(encoder.float)
        changed.callback(encoder.cpu)
        run: Any = encoder.to("cuda", kind_of)
        if kind == "patched":
            changed.enter_context(schedule.patched(encoder))
        elif kind == "sdpa":
            changed.enter_context(fused_attention(encoder))
        elif kind.startswith("compiled"):
            torch.compiler.reset()
            run = torch.compile(encoder, mode="reduce-overhead" if kind == "compiled-graph" else "default")

        def call(image: Tensor) -> Tensor:
            embedding: Tensor = run(image.to(kind_of)).float()
            return embedding

        timed = measure(call, images[0], given.runs)
        embeddings = outputs(call, images)
    if precision == "fp16":
        load_again()  # its weights were rounded
    return {"latency": timed, "parity": parity(given, model, method, embeddings)}


def load_again() -> None:
    """Forget the model that is kept."""
    from gpu_suite import exports

    exports._load.cache_clear()


@contextmanager
def fused_attention(encoder: nn.Module) -> Iterator[nn.Module]:
    """segment_anything's attention through `scaled_dot_product_attention`, relative positions as its additive mask."""
    attentions = [block.attn for block in encoder.blocks]
    try:
        for attention in attentions:
            attention.forward = MethodType(fused_forward, attention)
        yield encoder
    finally:
        for attention in attentions:
            del attention.forward


def fused_forward(attention: Any, x: Tensor) -> Tensor:
    """`Attention.forward` of segment_anything: x (B, H, W, C)."""
    import torch
    import torch.nn.functional as F
    from segment_anything.modeling.image_encoder import get_rel_pos

    B, H, W, C = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(B, H * W, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    bias = None
    if attention.use_rel_pos:
        rows, columns = get_rel_pos(H, H, attention.rel_pos_h), get_rel_pos(W, W, attention.rel_pos_w)
        places = q.reshape(B * heads, H, W, -1)
        by_row = torch.einsum("bhwc,hkc->bhwk", places, rows)[..., :, None]
        by_column = torch.einsum("bhwc,wkc->bhwk", places, columns)[..., None, :]
        bias = (by_row + by_column).reshape(B, heads, H * W, H * W)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attention.scale)
    result: Tensor = attention.proj(y.transpose(1, 2).reshape(B, H, W, C))
    return result
