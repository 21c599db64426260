"""One cache of traces for all workers of a test run: tracing is half of an export's time, and most tests repeat it.

A trace is kept under a hash of the package's sources and of everything it depends on, so that it is never stale.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import structsam_export
from structsam_export import pipeline
from structsam_export.folder import PARTS, companion, raw_name

# Options that do not change a trace.
LATER = ("precision", "form", "backend", "target", "images", "checkpoint", "rate", "layers")
own = pipeline.trace_stage


@cache
def place():
    """The cache of these sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(structsam_export.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"structsam-traces-{os.getuid()}" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def trace_stage(job, folder):
    """`pipeline.trace_stage`, from the cache where it has the trace."""
    config = {k: v for k, v in job.config.to_dict().items() if k not in LATER}
    facts = [config, job.loaded.sha256, {i: repr(m) for i, m in job.schedule.blocks.items()}]
    kept = place() / hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    names = [name for part in PARTS for name in (raw_name(part), companion(raw_name(part)))]
    if not kept.exists():
        own(job, folder)
        partial = Path(tempfile.mkdtemp(dir=place()))
        for name in names:
            if (folder.path / name).exists():
                shutil.copy(folder.path / name, partial / name)
        try:
            partial.rename(kept)
        except OSError:  # another worker was faster
            shutil.rmtree(partial)
        return
    for name in names:
        if (kept / name).exists():
            shutil.copy(kept / name, folder.path / name)
    folder.add(*(raw_name(part) for part in PARTS))
    folder.write()
