"""ONNX files that somebody made to hurt: forms by name, and mutations of their bytes."""

from __future__ import annotations

import os
import random

import numpy as np
import onnx
from bench_files import SMALL_SIDE, outer_product
from graphs import FLOAT, node
from onnx import helper, numpy_helper

BIG = 1 << 40


def plain():
    """A graph of the right inputs and outputs."""
    return outer_product(SMALL_SIDE, SMALL_SIDE)


def changed(change):
    """A form that is the plain graph with one change."""

    def made():
        model = plain()
        change(model)
        return model

    return made


def external(location, **more):
    """Weights in another file."""

    def change(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=str(value))

    return changed(change)


def function(name, calls):
    """A local function that calls others."""
    nodes, at = [], "x"
    for i, called in enumerate(calls):
        nodes.append(helper.make_node(called, [at], [f"v{i}"], domain="evil"))
        at = f"v{i}"
    return helper.make_function("evil", name, ["x"], [at], nodes, [helper.make_opsetid("evil", 1)])


def calling(*functions):
    """The plain graph with local functions, of which the first is called."""

    def change(model):
        model.opset_import.append(helper.make_opsetid("evil", 1))
        model.functions.extend(functions)
        model.graph.node[0].input[0] = "through"
        model.graph.node.insert(0, helper.make_node(functions[0].name, ["image"], ["through"], domain="evil"))

    return changed(change)


def with_first(op, inputs="image", constants=None, **attributes):
    """The plain graph, which computes something else from the image first."""

    def change(model):
        for name, value in (constants or {}).items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        model.graph.node[0].input[0] = "through"
        model.graph.node.insert(0, node(op, inputs, "through", **attributes))

    return changed(change)


def set_field(path, value):
    """The plain graph with one field changed."""

    def change(model):
        at = model
        *way, last = path
        for step in way:
            at = at[step] if isinstance(step, int) else getattr(at, step)
        setattr(at, last, value)

    return changed(change)


def loop(trips):
    """A loop of many trips around nothing."""
    body = helper.make_graph(
        [node("Identity", "going", "on"), node("Identity", "carried", "next")],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ()),
            helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, ()),
            helper.make_tensor_value_info("carried", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    return with_first("Loop", "trips yes image", {"trips": np.int64(trips), "yes": np.True_}, body=body)


def nested(depth):
    """If within If."""

    def branch(left):
        inner = node("Identity", "image", f"y{left}") if not left else None
        if left:
            inner = helper.make_node(
                "If", ["yes"], [f"y{left}"], then_branch=branch(left - 1), else_branch=branch(0), name=f"if{left}"
            )
        return helper.make_graph([inner], "b", [], [helper.make_tensor_value_info(f"y{left}", FLOAT, None)])

    return with_first("If", "yes", {"yes": np.True_}, then_branch=branch(depth), else_branch=branch(0))


def deep(depth):
    """Graphs in attributes of nodes, so deep that only bytes can say it."""

    def field(number, content):
        size, length = len(content), b""
        while True:
            length += bytes([size & 127 | (128 if size > 127 else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + length + content

    def made():
        inner = b""
        for _ in range(depth):
            inner = field(1, field(5, field(6, inner)))  # graph.node.attribute.g
        return plain().SerializeToString() + field(7, inner)  # merged into the model's graph

    return made


def many(count):
    """A chain of nodes."""

    def change(model):
        at = "image"
        chain = []
        for i in range(count):
            chain.append(node("Identity", at, f"c{i}"))
            at = f"c{i}"
        model.graph.node[0].input[0] = at
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*chain, *rest])

    return changed(change)


def no_graph(model):
    model.ClearField("graph")


def no_outputs(model):
    del model.graph.output[:]


def circle(model):
    model.graph.node[0].input[0] = "large"


def twice(model):
    model.graph.node.append(model.graph.node[0])


def no_opset(model):
    del model.opset_import[:]


def untyped(model):
    model.graph.input[0].ClearField("type")


def dynamic(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "n"


def sequence(model):
    elem = helper.make_tensor_type_proto(FLOAT, (1,))
    model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(elem))


def sparse(model):
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([1 << 50], np.int64), "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 60]))


def shadow(model):
    model.functions.append(
        helper.make_function("", "MatMul", ["a", "b"], ["y"], [node("Add", "a b", "y")], model.opset_import)
    )


def weights_as_output(model):
    model.graph.output.append(helper.make_tensor_value_info("flat", onnx.TensorProto.INT64, (1,)))


def several_outputs(model):
    model.graph.output.append(model.graph.output[0])


def attribute_of_another_kind(model):
    model.graph.node[-1].attribute[0].type = onnx.AttributeProto.TENSOR


def huge_metadata(model):
    model.metadata_props.add(key="k" * 1000, value="v" * 5_000_000)


INITIALISER = ("graph", "initializer", 0)
FORMS = {
    "as it should be": plain,
    "no graph": changed(no_graph),
    "no outputs": changed(no_outputs),
    "a function calls itself": calling(function("f", ["f"])),
    "functions call each other": calling(function("f", ["g"]), function("g", ["f"])),
    "functions grow": calling(*(function(f"f{i}", [f"f{i + 1}"] * 2) for i in range(40)), function("f40", ["f41"])),
    "a function that is missing": calling(function("f", ["nothing"])),
    "external: parent": external("../secret"),
    "external: absolute": external("/etc/hostname"),
    "external: no such": external("nothing.data"),
    "external: empty": external(""),
    "external: folder": external("."),
    "external: unlisted": external("unlisted.data"),
    "external: link": external("link.data"),
    "external: hard link": external("hard.data"),
    "external: far": external("encoder.onnx.data", offset=BIG, length=8),
    "external: long": external("encoder.onnx.data", offset=0, length=BIG),
    "external: negative": external("encoder.onnx.data", offset=-5, length=-1),
    "external: words": external("encoder.onnx.data", offset="x", length="y"),
    "dims: huge": changed(lambda m: m.graph.initializer[0].dims.extend([BIG, BIG])),
    "dims: negative": changed(lambda m: m.graph.initializer[0].dims.extend([-1])),
    "dims: overflow": changed(lambda m: m.graph.initializer[0].dims.extend([1 << 62, 4])),
    "data: none": set_field((*INITIALISER, "raw_data"), b""),
    "data: odd": set_field((*INITIALISER, "raw_data"), b"123"),
    "type: unknown": set_field((*INITIALISER, "data_type"), 99),
    "type: none": set_field((*INITIALISER, "data_type"), 0),
    "type: text": set_field((*INITIALISER, "data_type"), onnx.TensorProto.STRING),
    "name: none": set_field((*INITIALISER, "name"), ""),
    "name: escapes": set_field(("graph", "node", 0, "name"), "\x1b]0;evil\x07\x1b[31m[red][/]"),
    "input: escapes": set_field(("graph", "input", 0, "name"), "\x1b[2J[/bold]"),
    "output: escapes": set_field(("graph", "output", 0, "name"), "../../x[/]"),
    "node: unknown": set_field(("graph", "node", 5, "op_type"), "Nothing"),
    "node: unknown domain": set_field(("graph", "node", 5, "domain"), "evil"),
    "node: no type": set_field(("graph", "node", 5, "op_type"), ""),
    "circle": changed(circle),
    "twice": changed(twice),
    "opset: none": changed(no_opset),
    "opset: 0": set_field(("opset_import", 0, "version"), 0),
    "opset: large": set_field(("opset_import", 0, "version"), 1 << 40),
    "opset: negative": set_field(("opset_import", 0, "version"), -1),
    "ir: large": set_field(("ir_version",), 1 << 40),
    "ir: 0": set_field(("ir_version",), 0),
    "input: untyped": changed(untyped),
    "input: dynamic": changed(dynamic),
    "input: sequence": changed(sequence),
    "sparse": changed(sparse),
    "shadow": changed(shadow),
    "weights as output": changed(weights_as_output),
    "output twice": changed(several_outputs),
    "attribute of another kind": changed(attribute_of_another_kind),
    "metadata": changed(huge_metadata),
    "loop: long": loop(1 << 62),
    "loop: short": loop(3),
    "nested: 20": nested(20),
    "nested: 10000": deep(10_000),
    "many": many(20_000),
    "memory: constant": with_first("ConstantOfShape", "shape", {"shape": np.array([BIG])}),
    "memory: expand": with_first("Expand", "image shape", {"shape": np.array([1 << 12, 1 << 8, 96, 96])}),
    "memory: tile": with_first("Tile", "image shape", {"shape": np.array([1 << 20, 1 << 20, 1, 1])}),
    "memory: pad": with_first("Pad", "image shape", {"shape": np.array([0] * 7 + [1 << 50])}),
    "memory: range": with_first("Range", "zero limit one", {k: np.int64(v) for k, v in (("limit", BIG), ("one", 1))}),
    "reshape: wrong": with_first("Reshape", "image shape", {"shape": np.array([7, 7])}),
    "gather: outside": with_first("Gather", "image where", {"where": np.array([1 << 40])}),
    "zero division": with_first("Mod", "zero zero", {}),
}


def bytes_of(form):
    """A form as a file's content."""
    made = FORMS[form]()
    return made if isinstance(made, bytes) else made.SerializeToString()


def lay_beside(folder):
    """The files that some forms point to: listed weights, unlisted ones, a link, a file with two names."""
    data = bytes(range(256)) * 16
    for name in ("encoder.onnx.data", "unlisted.data", "hard.data"):
        (folder / name).write_bytes(data)
    (folder / "link.data").symlink_to("unlisted.data")
    os.link(folder / "hard.data", folder / "hard2.data")


def mutations(seed):
    """Endless: (name, content), a few bytes of a form changed, left out, doubled or cut off."""
    chance = random.Random(seed)
    while True:
        form = chance.choice([f for f in FORMS if f not in ("metadata", "many", "nested: 10000")])
        data = bytearray(bytes_of(form))
        kind = chance.choice(["change", "cut", "drop", "double"])
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data))
            if kind == "change":
                data[at] = chance.randrange(256)
            elif kind == "drop":
                del data[at : at + chance.randint(1, 4)]
            elif kind == "double":
                data[at:at] = data[at : at + chance.randint(1, 16)]
        if kind == "cut":
            del data[chance.randrange(len(data)) :]
        yield f"{form}, {kind}", bytes(data)
