"""What merging adds to each block of an encoder, counted in the network that TensorRT-RTX makes of it; without a GPU.

    python scripts/plugin_launches ENCODER.onnx     # of an export with --plugins all; --json for programs

A block's first half (norm, attention, residual sum) of a dense encoder is norms, products, sums, casts and the
attention; whatever else its network has there is what merging adds. Views cost nothing; a shuffle that moves data
counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])


def main() -> None:
    from plugin_launches.counting import counted

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = counted(given.encoder)
    if given.json:
        print(json.dumps(found))
        return
    print(f"{given.encoder}: {found['nodes']} nodes, {found['layers']} layers ({found['plugins']} plugins)")
    for number, added in enumerate(found["blocks"]):
        names = ", ".join(f"{name} {count}" for name, count in added.items())
        print(f"block {number:2}: {sum(added.values())} launches for merging ({names})")


if __name__ == "__main__":
    main()
