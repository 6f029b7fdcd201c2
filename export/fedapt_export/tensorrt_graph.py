"""What TensorRT's parser asks of a graph, and nothing else does.

Source: TensorRT documentation, "Supported Operators", UINT8: of inputs and outputs of the network,
which a Cast has to take.
"""

from __future__ import annotations

import onnx

_MOVES = ("Reshape", "Transpose")


def cast_pixels_first(model: onnx.ModelProto) -> bool:
    """Put, in place, the cast of the pixels before what moves them as bytes; results are the same.

    Returns:
        Whether there was anything to do.
    """
    graph = model.graph
    images = current = graph.input[0].name
    moves: list[onnx.NodeProto] = []
    while True:
        users = [n for n in graph.node if current in n.input and n.op_type != "Shape"]
        if len(users) != 1 or users[0].op_type not in (*_MOVES, "Cast"):
            return False
        if users[0].op_type == "Cast":
            break
        moves.append(users[0])
        current = users[0].output[0]
    if not moves:
        return False
    (cast,) = users
    values = f"{images}.values"
    stale = {node.output[0] for node in (*moves, cast)}
    moves[-1].output[0] = cast.output[0]
    cast.output[0], cast.input[0], moves[0].input[0] = values, images, values
    place = list(graph.node).index(moves[0])
    moved = onnx.NodeProto()
    moved.CopyFrom(cast)
    graph.node.remove(cast)
    graph.node.insert(place, moved)
    kept = [info for info in graph.value_info if info.name not in stale]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return True
