"""What an encoder gives of an image: the embedding, or several tensors by name where its decoder reads more.

SAM's encoder gives `image_embeddings` (B, C, h, w), and that array is its features. SAM-HQ's also gives
`interm_embeddings` (B, h, w, D), the tokens after the first global block: then features are a dict of both. A model of
timm gives pooled `image_embeddings` (B, C), and `logits` (B, classes) if it classifies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    import numpy as np

Features = Union["np.ndarray", Mapping[str, "np.ndarray"]]

EMBEDDING, EARLY, LOGITS = "image_embeddings", "interm_embeddings", "logits"
# Every tensor that an encoder may hand to its decoder, or to whoever reads its features; what else a graph gives are
# decisions.
NAMES = (EMBEDDING, EARLY, LOGITS)


def features_of(outputs: Mapping[str, np.ndarray]) -> Features:
    """The features among the outputs of an encoder."""
    found = {name: outputs[name] for name in NAMES if name in outputs}
    return found if len(found) > 1 else found[EMBEDDING]


def named(features: Features) -> dict[str, np.ndarray]:
    """Features by name."""
    return dict(features) if isinstance(features, Mapping) else {EMBEDDING: features}


def embedding_of(features: Features) -> np.ndarray:
    """The image embedding (B, C, h, w) among features."""
    return named(features)[EMBEDDING]


def each(change: Callable[[np.ndarray], np.ndarray], features: Features) -> Features:
    """Features with every tensor changed alike."""
    return features_of({name: change(value) for name, value in named(features).items()})


def rows(features: Features, part: slice) -> Features:
    """The features of some of the images."""
    return each(lambda value: value[part], features)


def joined(parts: Sequence[Features]) -> Features:
    """Features of several calls, one after the other."""
    import numpy as np

    by_name = [named(part) for part in parts]
    return features_of({name: np.concatenate([part[name] for part in by_name]) for name in by_name[0]})
