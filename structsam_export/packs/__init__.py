"""The packs: folders written for somebody else's program from a finished export. One file each, one line here.

`write_pack` makes one; `docs/packs.md` has the table of programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from structsam_export.packs.base import Option, Pack

PACKS = {
    "meta": "structsam_export.packs.meta:Meta",
    "anylabeling": "structsam_export.packs.anylabeling:AnyLabeling",
    "hf": "structsam_export.packs.hf:HuggingFace",
    "nanosam": "structsam_export.packs.nanosam:NanoSAM",
    "isaac-ros": "structsam_export.packs.isaac_ros:IsaacROS",
    "triton": "structsam_export.packs.triton:Triton",
    "jetson": "structsam_export.packs.jetson:Jetson",
    "ray": "structsam_export.packs.ray_serve:RayServe",
}
MANIFEST = "pack.json"
SCHEMA = 1


@dataclass(frozen=True)
class Written:
    """A finished pack: its folder, and `pack.json` as plain values."""

    folder: Path
    manifest: dict[str, Any]


def pack_class(name: str) -> type[Pack]:
    """The pack of a name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in PACKS:
        raise unknown_name("pack", name, PACKS)
    module, symbol = PACKS[name].split(":")
    made: type[Pack] = getattr(import_module(module), symbol)
    return made


def make_pack(name: str, options: Mapping[str, str] | None = None) -> Pack:
    """A pack with its options, the rest as they are by default.

    Raises:
        UsageError: an unknown pack, an option it does not have, or a value that the option does not take.
    """
    cls, given = pack_class(name), dict(options or {})
    for option, value in given.items():
        if option not in cls.OPTIONS:
            known = ", ".join(f"--{known}" for known in cls.OPTIONS) or "none"
            raise UsageError(f"Pack '{name}' has no --{option}; its options: {known}. Leave --{option} away.")
        if value not in cls.OPTIONS[option].choices:
            choices = ", ".join(cls.OPTIONS[option].choices)
            raise UsageError(f"--{option} {value} is not available for pack '{name}'. Choose from: {choices}.")
    return cls({option: given.get(option, about.choices[0]) for option, about in cls.OPTIONS.items()})


def options_of_packs() -> dict[str, Option]:
    """Every option that some pack has; one name means the same in all of them, choices are joined."""
    from structsam_export.packs.base import Option

    found: dict[str, Option] = {}
    for cls in map(pack_class, PACKS):
        for name, option in cls.OPTIONS.items():
            earlier = found.get(name, Option((), option.help))
            found[name] = Option(tuple(dict.fromkeys((*earlier.choices, *option.choices))), earlier.help)
    return found


def write_pack(
    path: Path, output: Path, name: str, options: Mapping[str, str] | None = None, *, force: bool = False
) -> Written:
    """Write an export for a program.

    Args:
        path: the export folder.
        output: the folder to make; it appears whole or not at all.
        name: of the pack.
        options: of the pack, by name.
        force: replace an earlier pack.

    Raises:
        UsageError: unknown names, the program cannot run this export, or the output exists.
        ArtifactError: a file of the export is missing or was changed.
        OutputError: the place cannot be written to.
    """
    from structsam_export.console import note
    from structsam_export.drafts import new_folder_at
    from structsam_export.environment import versions
    from structsam_export.files import require_space, sha256_of
    from structsam_export.packs.base import Source

    pack, source = make_pack(name, options), Source.read(path)
    pack.check(source)
    if source.folder.manifest.results.passed is None:
        note(f"{path} was never validated; 'structsam-export validate {path}' compares it with PyTorch.")
    with new_folder_at(output, MANIFEST, "a pack", force=force, option="OUT") as partial:
        require_space(partial, source.bytes)
        pack.write(source, partial)
        (partial / "README.md").write_text(pack.readme(source, output.name), encoding="utf-8")
        names = sorted(p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file())
        manifest = {
            "schema": SCHEMA,
            "pack": name,
            "options": dict(pack.options),
            "source": source.facts(),
            "versions": versions(),
            "files": {n: {"sha256": sha256_of(partial / n), "bytes": (partial / n).stat().st_size} for n in names},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return Written(output, manifest)


def catalogue() -> list[dict[str, Any]]:
    """What `pack --list` shows: each pack with the programs that read it and its options."""
    return [
        {
            "name": name,
            "for": cls.CLIENTS,
            "holds": cls.TITLE,
            "options": {option: list(about.choices) for option, about in cls.OPTIONS.items()},
        }
        for name, cls in ((name, pack_class(name)) for name in PACKS)
    ]
