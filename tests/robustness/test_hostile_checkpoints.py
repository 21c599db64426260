"""Checkpoints that somebody made to hurt: loaded, or refused in a sentence; nothing of them is executed."""

from __future__ import annotations

from itertools import islice

import torch
from fork_server import REACHED
from hostile_checkpoints import FORMS, SAFE, written

COUNT = 100
LOADED = {"as it should be", "half", "wrapped", "prefixed", "safe"}
MEMORY = 24 << 30


def test_checkpoints_are_loaded_or_refused(server, tiny, tmp_path, large, counted):
    state = torch.load(tiny, weights_only=True)
    count = COUNT if large else len(FORMS) + len(SAFE)
    for number, (name, path) in enumerate(islice(written(state, tmp_path), count)):
        if not large and number % 9 and name not in LOADED and "runs" not in name:
            continue
        line = ["trace", "--model", "tiny", "--checkpoint", path, "--output", tmp_path / "out"]
        code, said, _ = server.run(*line, reach=True, timeout=300, memory=MEMORY)
        counted("hostile checkpoints", code if REACHED not in said else "loaded")
        assert code in (0, 4, 5) and "Traceback" not in said, (name, said[-3000:])
        assert "\x1b]" not in said, name
        assert (REACHED in said) or name not in LOADED, (name, said)
        assert not (tmp_path / "executed").exists(), name
