"""Do two checkouts export the same graphs? SHA-256 of every ONNX file of every method x variant x MLP policy.

    python scripts/compare_exports BEFORE AFTER [--jobs 2]

BEFORE and AFTER are checkouts of this repository, or JSON files that an earlier run wrote with --save. Each case is
traced and rewritten through the public command (demo model, FP16, opset 18), which leaves the traced, the rewritten
FP32 and the FP16 encoder and both decoders. Prints the cases that differ; the exit code is 3 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout, or JSON file of --save")
    parser.add_argument("after", type=Path, help="checkout, or JSON file of --save")
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the hashes as DIR/before.json, DIR/after.json")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    args = parser.parse_args()
    found = {}
    for name in ("before", "after"):
        place: Path = getattr(args, name)
        found[name] = json.loads(place.read_text()) if place.is_file() else hashes(place, args.jobs)
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            (args.save / f"{name}.json").write_text(json.dumps(found[name], indent=1) + "\n")
    return tell(found["before"], found["after"])


def hashes(checkout: Path, jobs: int) -> dict[str, dict[str, str]]:
    """{case: {file: SHA-256}} of a checkout; a case its command refuses holds {"refused": its message}."""
    cases = json.loads(ask(checkout, "list"))
    groups = [cases[i::jobs] for i in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        answers = pool.map(lambda group: ask(checkout, "hash", json.dumps(group)), groups)
    made = dict(json.loads(line) for answer in answers for line in answer.splitlines())
    return {name: made[name] for name, _ in cases}


def ask(checkout: Path, *arguments: str) -> str:
    """Run `worker.py` with the package of a checkout; its answer."""
    path = os.pathsep.join([str(checkout.resolve()), os.environ.get("PYTHONPATH", "")])
    with TemporaryDirectory(prefix="structsam-compare-") as folder:
        done = subprocess.run(
            [sys.executable, str(HERE / "worker.py"), *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"{checkout}: the worker failed; its messages are above.")
    return done.stdout


def tell(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> int:
    """Print what differs; the exit code."""
    different = [case for case in before.keys() | after.keys() if before.get(case) != after.get(case)]
    for case in sorted(different):
        old, new = before.get(case, {}), after.get(case, {})
        files = [f for f in sorted(old.keys() | new.keys()) if old.get(f) != new.get(f)]
        print(f"{case}: {', '.join(files)}")
    files = sum(len(found) for found in after.values())
    print(f"{len(after)} cases, {files} files: {len(different)} cases differ")
    return 3 if different else 0


if __name__ == "__main__":
    sys.exit(main())
