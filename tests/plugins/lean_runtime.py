"""Registers the quick plugins with TensorRT's lean runtime 11.4 and prints what its registry holds.

`tensorrt.plugin` is plain Python beside real bindings; the lean ones lack two names that it mentions and no test needs.
"""

from __future__ import annotations

import enum
import json
import sys

import tensorrt_lean_bindings as lean

FORMATS = "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 DHWC8 CDHW32 HWC DLA_LINEAR DLA_HWC4 HWC16 DHWC"
lean.TensorFormat = enum.IntEnum("TensorFormat", {name: i for i, name in enumerate(FORMATS.split())})
lean.ITensor = type("ITensor", (), {})
sys.modules["tensorrt"] = lean
import tensorrt_lean_bindings.plugin as trtp  # noqa: E402

sys.modules["tensorrt.plugin"] = trtp
sys.path.insert(0, sys.argv[1])
import qdp  # noqa: E402

names = qdp.register(trtp, lambda *asked: None)
combinations = [len(qdp.tune(trtp, name.partition("::")[2])) for name in names]
creators = [(c.plugin_namespace, c.name, c.plugin_version) for c in lean.get_plugin_registry().all_creators]
print(json.dumps({"version": lean.__version__, "names": names, "creators": creators, "combinations": combinations}))
