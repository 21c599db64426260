"""What can only be measured on a machine with an NVIDIA GPU, in one command; see docs/gpu.md.

`suite` runs `steps` in child processes (`worker`) and writes `report` after each. The steps' work is in `conditions`,
`exports`, `engines` and `eager`. Nothing heavy is imported by the parent, so that wheels can be installed first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
NOT_MEASURED = "not measured on GPU"
# What a dry run builds engines for; any SM that TensorRT-RTX knows would do.
DRY_TARGET = "sm86"


@dataclass(frozen=True)
class Options:
    """What a run was asked for, as plain values: child processes get it as JSON.

    `work` is the folder of exports and engines; `checkpoints` maps models to paths; `random`: every model but the
    bundled one gets random weights; `photos` are run for parity and to calibrate FP16. `plugin_library` and
    `plugin_kernels` are paths for engines with plugins, "" without.
    """

    work: str
    models: tuple[str, ...] = ("demo", "vit_b")
    methods: tuple[str, ...] = ("none", "structsam")
    rate: float = 0.5
    random: bool = False
    checkpoints: dict[str, str] = field(default_factory=dict)
    photos: int = 3
    runs: int = 100
    dry_run: bool = False
    plugin_library: str = ""
    plugin_kernels: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Options:
        """Inverse of `to_dict`, also after a passage through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)
