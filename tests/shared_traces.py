"""`pipeline.trace_stage` from the cache of the test run: tracing is half of an export's time."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil

from trace_cache import cached_file

from structsam_export import pipeline
from structsam_export.folder import PARTS, ExportFolder, companion, raw_name

# Options that do not change a trace; rate and layers are in the methods of the blocks.
LATER = ("precision", "form", "backend", "target", "images", "checkpoint", "rate", "layers")
own = pipeline.trace_stage


def trace_stage(job, folder):
    """As the package's own, but only the first time that this run is asked for this trace."""
    config = {k: v for k, v in job.config.to_dict().items() if k not in LATER}
    facts = [config, job.loaded.sha256, {i: repr(m) for i, m in job.schedule.blocks.items()}]

    def make(place):
        place.mkdir()
        own(job, ExportFolder(place, copy.deepcopy(folder.manifest)))

    kept = cached_file(hashlib.sha256(json.dumps(facts).encode()).hexdigest(), make)
    for name in (name for part in PARTS for name in (raw_name(part), companion(raw_name(part)))):
        if (kept / name).exists():
            shutil.copy(kept / name, folder.path / name)
    folder.add(*(raw_name(part) for part in PARTS))
    folder.write()
