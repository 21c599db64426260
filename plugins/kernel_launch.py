"""How a kernel is launched and compiled: what tests, the build script and registrations share.

Kernels are loaded by path (`part`), as they lie beside the package in a checkout and inside an installed one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

PLUGINS = ("token_energy", "merge_plan", "token_merge", "token_unmerge", "relpos_attention")
HERE = Path(__file__).parent

POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}


class Launch(NamedTuple):
    """One launch of one kernel.

    Args:
        kernel: the Triton function.
        grid: programs along three axes.
        signature: name -> Triton type of every argument that is no constant, in order: inputs, sizes, outputs.
        sizes: values of the int32 arguments.
        constants: values of the compile-time arguments.
        warps, stages: warps of a program, stages of its loads.
    """

    kernel: Callable[..., Any]
    grid: tuple[int, int, int]
    signature: dict[str, str]
    sizes: dict[str, int]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2

    def run(self, *tensors: Any) -> None:
        """Launch on tensors, inputs and outputs in the signature's order; they must be contiguous."""
        for tensor in tensors:
            assert tensor.is_contiguous()
        given = iter(tensors)
        arguments = [self.sizes[name] if kind == "i32" else next(given) for name, kind in self.signature.items()]
        options = {"num_warps": self.warps, "num_stages": self.stages}
        self.kernel[self.grid](*arguments, **self.constants, **options)  # type: ignore[index]


@cache
def part(name: str, file: str) -> Any:
    """A module of a plugin, `kernel` or `reference`; kernels need Triton."""
    if str(HERE) not in sys.path:
        sys.path.append(str(HERE))  # kernels import this file by its name
    title = f"structsam_plugins.{name}.{file}"
    spec = spec_from_file_location(title, HERE / name / f"{file}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[title] = module_from_spec(spec)  # Triton looks its functions' globals up there
    spec.loader.exec_module(module)
    return module


def pieces(size: int, piece: int) -> int:
    """How many pieces cover `size`."""
    return -(-size // piece)


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is no smaller than `size` and `least`."""
    power = least
    while power < size:
        power *= 2
    return power
