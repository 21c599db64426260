"""Fetch what the page of `serve` runs besides its own files: ONNX Runtime's WebAssembly, from npm, by its hash.

python scripts/page_vendor

The files are part of the package, so that neither a build nor a server needs the network. Run this again only for
another version: set VERSION and INTEGRITY (`npm view onnxruntime-web@VERSION dist.integrity`), and commit what it
writes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import urllib.request
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
TARGET = Path(__file__).parents[2] / "structsam_export" / "serve" / "page" / "vendor"


def main() -> None:
    parser = ArgumentParser(
        "python scripts/page_vendor", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.parse_args()
    with urllib.request.urlopen(URL, timeout=120) as answer:
        package = answer.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()
    if found != INTEGRITY:
        raise SystemExit(f"{URL} is not what it was: {found}. Nothing is written.")
    record: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None, name
            content = member.read()
            record[name] = hashlib.sha256(content).hexdigest()
            if name.endswith(".wasm"):  # a quarter of its size; browsers unpack it
                (TARGET / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))
            else:
                # Without the link to a source map that is not here.
                text = content.decode().partition("//# sourceMappingURL=")[0].rstrip() + "\n"
                record[name] = hashlib.sha256(text.encode()).hexdigest()
                (TARGET / name).write_text(text, encoding="utf-8")
    about = {
        "package": "onnxruntime-web",
        "version": VERSION,
        "integrity": INTEGRITY,
        "license": "MIT",
        "sha256": record,
    }
    (TARGET / "vendor.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
