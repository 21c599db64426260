"""IPluginV3 in Python: TensorRT-RTX (or TensorRT 10 and later) parses the operators and builds engines with it, no GPU.

    import tensorrt_rtx, v3_python
    creators = v3_python.register(tensorrt_rtx)     # before a graph is parsed; keep them

Nothing is computed here: an engine that was built with these runs where the C++ library (`v3/`) is loaded, which
registers the same names with kernels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from operators import FIELDS, NAMESPACE, TYPES, VERSION, Fields, allowed, output_shapes, output_types  # noqa: E402


def register(trt: Any) -> list[Any]:
    """Register a creator for every operator with the library's registry.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.

    Returns:
        The creators; the registry does not keep them alive.

    Raises:
        RuntimeError: the registry refuses one, for example because the C++ library is loaded already.
    """
    creator = creator_class(trt)
    made = [creator(op) for op in FIELDS]
    for one in made:
        if not trt.get_plugin_registry().register_creator(one, NAMESPACE):
            raise RuntimeError(f"The registry refuses {NAMESPACE}::{one.name}. Is it registered already?")
    return made


def type_names(trt: Any) -> dict[Any, str]:
    return {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16", trt.int32: "int32"}


def plugin_class(trt: Any) -> type:
    """The class of plugins of a library."""
    names = type_names(trt)
    types = {name: kind for kind, name in names.items()}

    class Fused(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore
        def __init__(self, op: str, fields: Fields) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.op, self.fields = op, fields
            self.plugin_name, self.plugin_namespace, self.plugin_version = op, NAMESPACE, VERSION
            self.num_outputs = len(TYPES[op][1])

        def get_capability_interface(self, type: Any) -> Any:
            return self

        def get_output_data_types(self, input_types: Any) -> Any:
            return [types[name] for name in output_types(self.op, [names[t] for t in input_types])]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            sizes = [[one[i].get_constant_value() for i in range(len(one))] for one in inputs]
            return [
                trt.DimsExprs([builder.constant(size) for size in shape])
                for shape in output_shapes(self.op, sizes, self.fields)
            ]

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass  # shapes and types are all there is to know

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            kinds = [names.get(one.desc.type, "") for one in in_out[: pos + 1]]
            return in_out[pos].desc.format == trt.TensorFormat.LINEAR and allowed(self.op, kinds, pos)

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([int_field(trt, n, getattr(self.fields, n)) for n in FIELDS[self.op]])

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass  # shapes are fixed

        def get_valid_tactics(self) -> Any:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass  # there is one

        def enqueue(self, *given: Any) -> None:
            raise RuntimeError(f"{self.op} has no kernel in Python. Load the C++ library (plugins/registration/v3).")

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def clone(self) -> Any:
            return Fused(self.op, self.fields)

    return Fused


def creator_class(trt: Any) -> type:
    """The class of creators of a library."""
    plugin = plugin_class(trt)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore
        def __init__(self, op: str) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = op, NAMESPACE, VERSION
            self.field_names = trt.PluginFieldCollection([int_field(trt, name, None) for name in FIELDS[op]])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {f.name: int(f.data.flat[0]) for f in fields if f.name in FIELDS[self.name]}
            return plugin(self.name, Fields(**given))

    return Creator


def int_field(trt: Any, name: str, value: int | None) -> Any:
    import numpy as np

    data = np.array([] if value is None else [value], np.int32)
    return trt.PluginField(name, data, trt.PluginFieldType.INT32)
