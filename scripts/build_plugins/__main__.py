"""Compile the kernels of plugins/ ahead of time, without a GPU, and show what they need of each.

    python scripts/build_plugins --output kernels                       # every plugin for every SM
    python scripts/build_plugins --sms 87 --cuda 12.6 --output kernels  # for one device and its CUDA
    python scripts/build_plugins --plugins merge_plan --sms 87,90       # some plugins

Shapes are those of `builds` in each plugin's cases.yaml. OUTPUT/<plugin>/ gets PTX (for `tensorrt.plugin`, without
the scratch parameters that Triton appends) and a cubin of each, OUTPUT/kernels.json and kernels.md what they need. What
has not changed since is not compiled again. Refused, and not written: what spills registers, what needs more than
--shared of shared memory, and attention on SM 75.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
sys.path.append(str(Path(__file__).parents[2] / "plugins"))


def arguments() -> argparse.Namespace:
    """The command line."""
    from build_plugins.targets import CUDA, SMS
    from kernel_launch import PLUGINS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("kernels"), help="folder of the results; default: %(default)s"
    )
    parser.add_argument("--plugins", default=",".join(PLUGINS), help="default: %(default)s")
    parser.add_argument("--builds", help="names of builds in cases.yaml, separated by commas; default: all")
    parser.add_argument("--sms", default=",".join(map(str, SMS)), help="default: %(default)s")
    parser.add_argument(
        "--cuda", choices=CUDA, help="CUDA of the device's driver; default: the first that knows its SM"
    )
    parser.add_argument(
        "--shared", type=int, default=48, help="KB of shared memory that a program may use; %(default)s"
    )
    given = parser.parse_args()
    given.plugins, given.sms = given.plugins.split(","), given.sms.split(",")
    given.builds = given.builds.split(",") if given.builds else None
    if unknown := [name for name in given.plugins if name not in PLUGINS]:
        parser.error(f"no plugin '{unknown[0]}'; known: {', '.join(PLUGINS)}")
    if unknown := [sm for sm in given.sms if sm not in map(str, SMS)]:
        parser.error(f"no SM '{unknown[0]}'; known: {', '.join(map(str, SMS))}")
    return given


def main() -> None:
    given = arguments()
    from build_plugins.build import BuildError, build

    try:
        rows = build(given.output, given.plugins, given.builds, [int(sm) for sm in given.sms], given.cuda, given.shared)
    except BuildError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print((given.output / "kernels.md").read_text())
    if wrong := [row for row in rows if row["refused"] and not row["expected"]]:
        print(f"Error: {len(wrong)} kernels were refused; the table says why.", file=sys.stderr)
        raise SystemExit(4)


if __name__ == "__main__":
    main()
