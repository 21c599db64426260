"""The kernels of one encoder's plugins for one SM, as the C++ library reads them. No GPU is needed.

    python scripts/plugin_kernels ENCODER.onnx --sm 87 --cuda 12.6 --output kernels   # then STRUCTSAM_KERNELS=kernels

ENCODER is of an export with --plugins. The folder gets a cubin for each kind of node and kernels.txt, which says which
one computes a node and how it is launched (plugins/registration/v3/kernels.h).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "scripts")
sys.path += [str(ROOT / "plugins"), str(ROOT / "plugins" / "registration")]


def main() -> None:
    from build_plugins.build import refusal
    from build_plugins.compiling import fitting
    from build_plugins.targets import FIRST, SHARED, SMS, ptx_version
    from plugin_kernels.nodes import launches

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--sm", type=int, choices=list(SMS), required=True)
    parser.add_argument("--cuda", help="CUDA of the device's driver; default: the first that knows the SM")
    parser.add_argument("--output", type=Path, default=Path("kernels"))
    given = parser.parse_args()
    version = ptx_version(given.sm, given.cuda)
    if isinstance(version, str):
        parser.error(version)
    given.output.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (key, launch) in enumerate(launches(given.encoder).items()):
        first, reason = FIRST.get(launch.kernel.__name__, (0, ""))
        if given.sm < first:
            raise SystemExit(f"{key}: {reason}. Export without this plugin.")
        # 48 KB needs no leave; the library asks for more where that does not do.
        made, launch = fitting(launch, given.sm, version, 48 * 1024)
        if refused := refusal(made._asdict(), given.sm, SHARED[given.sm]):
            raise SystemExit(f"{key} on SM {given.sm}: {refused}")
        name = f"{number}.sm{given.sm}.cubin"
        (given.output / name).write_bytes(made.cubin)
        words = [key, made.entry, name, *launch.grid, 32 * launch.warps, made.shared, *launch.sizes.values()]
        lines.append(" ".join(map(str, words)))
        print(lines[-1])
    (given.output / "kernels.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
