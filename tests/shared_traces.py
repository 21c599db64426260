"""`pipeline.trace_stage` from the cache of the test run: tracing is most of an export's time."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import re
import shutil
import sys
from contextlib import contextmanager
from functools import wraps
from unittest import mock

import torch
from trace_cache import cached_file

from structsam_export import pipeline, trace
from structsam_export.folder import ExportFolder, companion, raw_name
from structsam_export.hosts import geometry_of
from structsam_export.patch.encoder import patch_of

# Options that do not change a trace; rate and layers are in the methods of the blocks.
LATER = ("precision", "form", "backend", "target", "images", "checkpoint", "rate", "layers")
own_stage, own_export = pipeline.trace_stage, torch.onnx.export
own_encoder, own_decoder = trace.trace_encoder, trace.trace_decoder


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


@contextmanager
def sharing():
    """While this lasts, exports take their traces from the cache, and tracing is left out of coverage.

    Every test runs in it (`conftest.traces_are_shared`); fixtures of a module or session start before, and ask for it.
    """
    staged = mock.patch("structsam_export.pipeline.trace_stage", trace_stage)
    with mock.patch("torch.onnx.export", export_without_coverage), staged:
        yield


def key_of(*facts):
    """A file name for everything a trace depends on."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def trace_stage(job, folder):
    """As the package's own, but only the first time that this run is asked for this trace."""
    config = {k: v for k, v in job.config.to_dict().items() if k not in LATER}
    facts = [config, job.loaded.sha256, {i: repr(m) for i, m in job.schedule.blocks.items()}]

    def make(place):
        place.mkdir()
        trace.trace_encoder, trace.trace_decoder = trace_encoder, decoder_of(job)
        try:
            own_stage(job, ExportFolder(place, copy.deepcopy(folder.manifest)))
        finally:
            trace.trace_encoder, trace.trace_decoder = own_encoder, own_decoder

    copy_parts(cached_file(key_of(*facts), make), folder.path, folder.parts)
    folder.add(*(raw_name(part) for part in folder.parts))
    folder.write()


def trace_encoder(encoder, image_size, path, **options):
    """`trace.trace_encoder` from the cache."""
    copy_parts(traced_encoder(encoder, image_size, **options).parent, path.parent, ["encoder"])


def traced_encoder(encoder, image_size, *, batch=1, opset=trace.OPSET, boxes=False):
    """Path of a (patched) encoder's trace, made once for the same weights, roles and options; not to be changed.

    For tests that leave the package's own code as it is: what they replace in it is no part of the key.
    """
    patch = patch_of(encoder)
    roles = re.sub(" at 0x[0-9a-f]+", "", repr(patch.roles if patch else None))  # of functions: their names tell enough
    weights = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        weights.update(name.encode() + value.numpy().tobytes())
    facts = [str(geometry_of(encoder)), weights.hexdigest(), roles, image_size, batch, opset, boxes]

    def make(place):
        place.mkdir()
        with sharing():
            own_encoder(encoder, image_size, place / raw_name("encoder"), batch=batch, opset=opset, boxes=boxes)

    return cached_file(key_of("encoder", *facts), make) / raw_name("encoder")


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
