"""Results that survive an interruption: one small JSON file an image, and what they were made with.

    <folder>/evaluation.json      settings of the evaluation; another evaluation does not mix with it
    <folder>/images/<name>.json   one image: scores by model, each with the key of everything they depend on
    <folder>/report.json          the tables of the last complete run

A file appears whole or not at all. A score whose key is not the one asked for (another image under the old name) is
computed again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from structsam_export.errors import UsageError
from structsam_export.files import atomic, disk_errors

SETTINGS, IMAGES, REPORT = "evaluation.json", "images", "report.json"
SCHEMA = 1
USUAL = {"runner": "eager", "protocol": "sam", "prompt": "box"}


def default_folder(*names: str, **options: str) -> Path:
    """evaluations/<name>-<name>-..., and options only where they are not the default."""
    others = [value for option, value in options.items() if value != USUAL[option]]
    return Path("evaluations") / "-".join([*names, *others])


def key_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Store:
    """A folder of results, opened for one evaluation.

    Args:
        folder: made where it does not exist.
        settings: plain values that the results depend on and that must not change within the folder.
        force: delete results of an evaluation with other settings.

    Raises:
        UsageError: the folder holds another evaluation and `force` is not given, or something that is not ours.
        OutputError: it cannot be written to.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, force: bool = False) -> None:
        self.folder, self.images = folder, folder / IMAGES
        settings = json.loads(json.dumps({"schema": SCHEMA, **settings}))
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file. Pass another --output.")
        if folder.is_dir() and any(folder.iterdir()):
            self._check(settings, force)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder / SETTINGS, settings)
            self.images.mkdir(exist_ok=True)

    def _check(self, settings: Mapping[str, Any], force: bool) -> None:
        """Accept a folder of the same evaluation; empty it if `force` allows that."""
        place = self.folder / SETTINGS
        if not place.is_file():
            raise UsageError(f"{self.folder} holds something else than evaluations. Pass another --output.")
        found = read(place)
        if found == settings:
            return
        if not force:
            names = sorted(k for k in {*settings, *(found or {})} if (found or {}).get(k) != settings.get(k))
            raise UsageError(
                f"{self.folder} holds an evaluation with other settings ({', '.join(names)}). Pass --force to replace "
                "it, or another --output."
            )
        with disk_errors(self.folder):
            shutil.rmtree(self.images, ignore_errors=True)
            (self.folder / REPORT).unlink(missing_ok=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say, where the `with` block is interrupted, that nothing finished is lost.

        Raises:
            KeyboardInterrupt: with a message that says where finished images are.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Interrupted. Finished images are kept in {self.folder}; the same command continues from there."
            ) from None

    def get(self, name: str) -> dict[str, Any]:
        """The results of one image; empty if there are none."""
        return read(self.images / f"{name}.json") or {}

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep the results of one image."""
        self._write(self.images / f"{name}.json", result)

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Keep something else under a file name."""
        self._write(self.folder / name, data)

    def report(self, report: Mapping[str, Any]) -> None:
        """Keep the tables of a complete run."""
        self._write(self.folder / REPORT, report)

    def _write(self, path: Path, data: Mapping[str, Any]) -> None:
        with atomic(path) as partial:
            partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any] | None:
    """An object of a JSON file; None if there is none, or not a whole one (after a power cut): it is made again."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
