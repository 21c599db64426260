"""All kernels for all SMs: compiled where something has changed, refused where they would be slow, listed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from build_plugins.compiling import Compiled, fitting
from build_plugins.targets import FIRST, SHARED, ptx_version

COLUMNS = ("plugin", "build", "SM", "PTX", "registers", "shared", "spills", "stack", "warps", "stages")


class BuildError(Exception):
    """What the user can cure; ends the command."""

    def __init__(self, message: str, exit_code: int = 4) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def build(
    output: Path,
    plugins: Sequence[str],
    builds: Sequence[str] | None,
    sms: Sequence[int],
    cuda: str | None = None,
    shared: int = 48,
) -> list[dict[str, Any]]:
    """Compile and write; a row for each kernel and SM.

    Args:
        output: folder of the results.
        plugins: names.
        builds: names of builds of cases.yaml; None is all.
        sms: GPUs.
        cuda: of the device's driver; None for each SM's oldest.
        shared: KB of shared memory a program may use.

    Raises:
        BuildError: Triton is missing, or no build has such a name.
    """
    if find_spec("triton") is None:
        raise BuildError("Triton is missing. Install it: pip install 'structsam-export[plugins]'.")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise BuildError("TRITON_INTERPRET=1 interprets kernels. Unset it to compile them.")
    chosen = [row for name in plugins for row in builds_of(name) if builds is None or row[1] in builds]
    if not chosen:
        raise BuildError(f"No build is named {', '.join(builds or ())}. `builds` of cases.yaml lists them.", 2)
    try:
        output.mkdir(parents=True, exist_ok=True)
        index = output / "kernels.json"
        before = {row["files"]: row for row in known(index)}
        rows: list[dict[str, Any]] = []
        for name, title, launch in chosen:
            for sm in sms:
                files = f"{name}/{re.sub(r'[^A-Za-z0-9]+', '_', title)}.sm{sm}"
                row = attempt(output, files, name, title, launch, sm, cuda, shared, before.get(files))
                rows.append(row)
                # After each, so that an interrupted run continues here.
                others = [row for files, row in before.items() if files not in {row["files"] for row in rows}]
                write(index, json.dumps([*others, *rows], indent=1) + "\n")
        write(output / "kernels.md", matrix(rows) + "\n" + table(rows))
    except OSError as error:
        raise BuildError(f"Cannot write {output}: {error.strerror}. Choose another --output.") from None
    return rows


def builds_of(name: str) -> Iterator[tuple[str, str, Any]]:
    """Name, title and launch of every build of a plugin."""
    import yaml
    from kernel_launch import HERE, part

    for title, arguments in yaml.safe_load((HERE / name / "cases.yaml").read_text())["builds"].items():
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
        yield name, title, part(name, "kernel").launch(**given)


def known(index: Path) -> list[dict[str, Any]]:
    """What an earlier run wrote; nothing if that cannot be read."""
    try:
        return list(json.loads(index.read_text()))
    except (OSError, ValueError):
        return []


def attempt(
    output: Path, files: str, name: str, title: str, launch: Any, sm: int, cuda: str | None, shared: int, before: Any
) -> dict[str, Any]:
    """The row of one kernel on one SM; its files are written, kept or, where it is refused, removed."""
    first, reason = FIRST.get(name, (0, ""))
    version = ptx_version(sm, cuda)
    row: dict[str, Any] = {"plugin": name, "build": title, "sm": sm, "files": files, "refused": None, "expected": False}
    row |= {"warps": launch.warps, "grid": launch.grid, "arguments": launch.signature, "sizes": launch.sizes}
    if sm < first or isinstance(version, str):
        remove(output, files)
        return row | {"refused": f"refused: {reason if sm < first else version}", "expected": True, "key": ""}
    row |= {"ptx": version, "key": key_of(name, launch, sm, version, shared)}
    if before and before.get("key") == row["key"] and "registers" in before:
        kept = {**before, **row, "warps": before["warps"], "compiled": False}
        kept["refused"] = refusal(kept, sm, shared)
        if kept["refused"] or all((output / f"{files}{end}").exists() for end in (".ptx", ".cubin")):
            return kept
    try:
        made, way = fitting(launch, sm, version, min(shared, SHARED[sm]) * 1024)
    except Exception as error:  # Triton and ptxas have many; the other kernels go on
        remove(output, files)
        return row | {"refused": f"refused: does not compile: {first_line(error)}"}
    row |= {"stages": way.stages, "warps": way.warps}
    row |= {k: v for k, v in made._asdict().items() if k not in ("ptx", "cubin")} | {"compiled": True}
    row["refused"] = refusal(row, sm, shared)
    if row["refused"]:
        remove(output, files)
    else:
        save(output, files, made)
    return row


def first_line(error: Exception) -> str:
    """What a table has room for."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return said[0][:100].replace("|", "/")


def refusal(row: dict[str, Any], sm: int, shared: int) -> str | None:
    """Why a kernel is not shipped; None if it is."""
    if row["spills"]:
        return f"refused: spills {row['spills']} bytes"
    limit = min(shared, SHARED[sm])
    if row["shared"] > limit * 1024:
        return f"refused: needs {row['shared']} bytes of shared memory, more than {limit} KB"
    return None


def key_of(name: str, launch: Any, sm: int, version: int, shared: int) -> str:
    """A hash of all that a kernel is made from."""
    import triton
    from kernel_launch import HERE

    sources = [(HERE / name / "kernel.py").read_bytes(), (HERE / "kernel_launch.py").read_bytes()]
    sources += [Path(__file__).with_name("compiling.py").read_bytes()]
    what = [triton.__version__, launch.signature, launch.constants, launch.warps, launch.stages, sm, version, shared]
    return hashlib.sha256(b"\0".join([*sources, json.dumps(what).encode()])).hexdigest()


def save(output: Path, files: str, made: Compiled) -> None:
    """PTX and cubin, each in one step."""
    (output / files).parent.mkdir(exist_ok=True)
    write(output / f"{files}.ptx", made.ptx)
    write(output / f"{files}.cubin", made.cubin)


def remove(output: Path, files: str) -> None:
    """What an earlier run wrote of a kernel that is refused now."""
    for end in (".ptx", ".cubin"):
        (output / f"{files}{end}").unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what every kernel needs, or why there is none. Bytes, registers of a thread."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        what = [row["plugin"], row["build"], str(row["sm"])]
        if row["refused"]:
            lines.append("| " + " | ".join([*what, row["refused"], *[""] * (len(COLUMNS) - 4)]) + " |")
            continue
        needs = [
            f"{row['ptx'] / 10:.1f}",
            *(str(row[k]) for k in COLUMNS[4:]),
        ]
        lines.append("| " + " | ".join([*what, *needs]) + " |")
    return "\n".join(lines) + "\n"


def matrix(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each build and a column for each SM, with what `cell` says; reasons of refusals below."""
    sms = sorted({row["sm"] for row in rows})
    lines = ["| plugin | build | " + " | ".join(map(str, sms)) + " |", "|---" * (len(sms) + 2) + "|"]
    for plugin, title in dict.fromkeys((row["plugin"], row["build"]) for row in rows):
        of = {row["sm"]: row for row in rows if (row["plugin"], row["build"]) == (plugin, title)}
        lines.append("| " + " | ".join([plugin, title, *(cell(of[sm]) for sm in sms)]) + " |")
    reasons = dict.fromkeys(f"SM {row['sm']}, {row['plugin']}: {row['refused']}." for row in rows if row["refused"])
    return "\n".join([*lines, *(f"\n{reason}" for reason in reasons)]) + "\n"


def cell(row: dict[str, Any]) -> str:
    """Registers of a thread / KB of shared memory / bytes of stack, "s" for a kernel that loads nothing ahead."""
    if row["refused"]:
        return "-"
    return f"{row['registers']} / {row['shared'] / 1024:.0f} / {row['stack']}" + " s" * (row["stages"] == 1)
