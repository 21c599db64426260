"""Where a graph computes TokenEnergy: a norm over the channels of a grouped 3x3 convolution of tokens' head means."""

from structsam_export.rewrite.fused_nodes import found, metadata, put_in, random, same_numbers, upstream
from structsam_export.rewrite.match import producer, static_shape

NAME = "token_energy"
MOVES = ("Reshape", "Transpose", "Pad", "ReduceMean")
replace_with_plugin = put_in


def get_plugin_metadata():
    return metadata(NAME)


def get_matching_subgraphs(graph):
    """Matches as {"inputs": [y], "outputs": [energy], "attributes": {"heads": ...}}."""
    matches = []
    for node in graph.nodes:
        if node.op == "ReduceL2" and (match := energy_at(graph, node)):
            matches.append(match)
    return matches


def energy_at(graph, norm):
    conv = producer(norm.inputs[0], "Conv")
    readers = norm.outputs[0].outputs
    if conv is None or len(readers) != 1 or readers[0].op != "Div":
        return None
    energy, y = readers[0].outputs[0], upstream(conv.inputs[0], MOVES)
    if y is None:
        return None
    shape, depth = static_shape(y), (static_shape(conv.inputs[0]) or [0, 0])[1]
    if shape is None or len(shape) != 4 or static_shape(energy) != shape[:3] or not depth or shape[3] % depth:
        return None
    attrs = {"heads": shape[3] // depth}
    feeds = {y.name: random(shape)}
    if not same_numbers(graph, replace_with_plugin, "TokenEnergy", [y], [energy], attrs, feeds):
        return None
    return found("TokenEnergy", [y], [energy], attrs)
