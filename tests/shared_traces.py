"""`pipeline.trace_stage` from the cache of the test run: tracing is most of an export's time."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import shutil
import sys
from functools import wraps

import torch
from trace_cache import cached_file

from structsam_export import pipeline, trace
from structsam_export.folder import PARTS, ExportFolder, companion, raw_name

# Options that do not change a trace; rate and layers are in the methods of the blocks.
LATER = ("precision", "form", "backend", "target", "images", "checkpoint", "rate", "layers")
own_stage, own_decoder, own_export = pipeline.trace_stage, trace.trace_decoder, torch.onnx.export


@wraps(own_export)
def export_without_coverage(*arguments, **options):
    """`torch.onnx.export`; coverage's tracer more than doubles its time, and what it runs of ours runs elsewhere."""
    tracer = sys.gettrace()
    sys.settrace(None)
    gc.disable()  # a tenth of the time
    try:
        return own_export(*arguments, **options)
    finally:
        gc.enable()
        sys.settrace(tracer)


def key_of(*facts):
    """A file name for everything a trace depends on."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def trace_stage(job, folder):
    """As the package's own, but only the first time that this run is asked for this trace."""
    config = {k: v for k, v in job.config.to_dict().items() if k not in LATER}
    facts = [config, job.loaded.sha256, {i: repr(m) for i, m in job.schedule.blocks.items()}]

    def make(place):
        place.mkdir()
        trace.trace_decoder = decoder_of(job)
        try:
            own_stage(job, ExportFolder(place, copy.deepcopy(folder.manifest)))
        finally:
            trace.trace_decoder = own_decoder

    copy_parts(cached_file(key_of(*facts), make), folder.path, PARTS)
    folder.add(*(raw_name(part) for part in PARTS))
    folder.write()


def decoder_of(job):
    """`trace.trace_decoder` from the cache: it does not depend on the method."""

    def traced(sam, path, *, opset):
        def make(place):
            place.mkdir()
            own_decoder(sam, place / path.name, opset=opset)

        copy_parts(cached_file(key_of("decoder", job.loaded.weights, opset), make), path.parent, ["decoder"])

    return traced


def copy_parts(source, target, parts):
    """Traced files and their weights."""
    for name in (name for part in parts for name in (raw_name(part), companion(raw_name(part)))):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
