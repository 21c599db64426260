"""One kernel, compiled for one SM without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

POINTER_ALIGNMENT = 16  # bytes; TensorRT aligns tensors to 256


class Compiled(NamedTuple):
    """What came out: sizes in bytes, registers of a thread.

    `spills` are stores and loads of spilled registers; `shared` is asked for at launch, `stack` is a thread's.
    """

    ptx: str
    cubin: bytes
    entry: str
    target: str
    parameters: int
    registers: int
    spills: int
    stack: int
    shared: int


def strip_scratch(ptx: str, wanted: int) -> str:
    """PTX without the parameters after the first `wanted` ones: pointers to scratch memory that nothing uses.

    Raises:
        ValueError: the kernel does use one.
    """
    head, close, body = ptx.partition("\n)\n")
    names = re.findall(r"\.param [^,)\n]*?(\w+_param_\d+)", head)
    for name in reversed(names[wanted:]):
        if re.search(rf"\b{name}\b", body):
            raise ValueError(f"{name} is used, so it cannot be left out")
        head = re.sub(rf",?\s*\.param [^,\n]*\b{name}\b", "", head)
    return head + close + body


def compiled(launch: Any, sm: int, ptx_version: int) -> Compiled:
    """Compile a launch of `kernel_launch` for an SM; `ptx_version` is times ten.

    Raises:
        RuntimeError: ptxas refuses the kernel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = [i for i, kind in enumerate(launch.signature.values()) if kind.startswith("*")]
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature | dict.fromkeys(launch.constants, "constexpr"),
        constexprs=launch.constants,
        attrs={(i,): [["tt.divisibility", POINTER_ALIGNMENT]] for i in pointers},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "ptx_version": ptx_version}
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    ptx = strip_scratch(made.asm["ptx"], len(launch.signature))
    entry, target = (re.search(pattern, ptx) for pattern in (r"\.entry (\w+)", r"\.target (\w+)"))
    assert entry is not None and target is not None
    cubin, said = assembled(ptx, target[1], sm)
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert registers is not None and spills is not None, said
    stack, stores, loads = map(int, spills.groups())
    found = (len(launch.signature), int(registers[1]), stores + loads, stack, made.metadata.shared)
    return Compiled(ptx, cubin, entry[1], target[1], *found)


def fitting(launch: Any, sm: int, ptx_version: int, shared: int) -> tuple[Compiled, Any]:
    """Compile a launch in the first way that neither spills nor needs more than `shared` bytes of shared memory.

    As it is; without loading ahead, which takes memory and registers; with twice the warps, which have fewer rows each.

    Returns:
        What came out, of the last way if none fits, and the launch in that way.

    Raises:
        RuntimeError: ptxas refuses the kernel.
    """
    ways = [launch, launch._replace(stages=1), launch._replace(stages=1, warps=2 * launch.warps)]
    for way in ways:
        made = compiled(way, sm, ptx_version)
        if not made.spills and made.shared <= shared:
            break
    return made, way


def assembled(ptx: str, target: str, sm: int) -> tuple[bytes, str]:
    """A cubin, and what ptxas said of it."""
    import triton

    programs = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    program = programs / ("ptxas-blackwell" if sm >= 100 and (programs / "ptxas-blackwell").exists() else "ptxas")
    with tempfile.TemporaryDirectory(prefix="build_plugins-") as folder:
        source, result = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [str(program), "-v", f"-arch={target}", str(source), "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ptxas for {target}: {done.stderr.strip()[-300:]}")
        return result.read_bytes(), done.stderr
