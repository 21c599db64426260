"""The methods table of the README."""

from __future__ import annotations

import re
from pathlib import Path

from method_docs.package import catalogue, markdown

README = Path(__file__).parents[2] / "README.md"
TABLE = re.compile(r"(<!-- methods: .*? -->\n).*?(<!-- end of methods -->)", re.DOTALL)


def table() -> None:
    """Put the catalogue's table between the markers of the README."""
    made, count = TABLE.subn(lambda m: m[1] + markdown(catalogue()) + "\n" + m[2], README.read_text())
    if count != 1:
        raise SystemExit("README.md has no place for the table: <!-- methods: ... --> and <!-- end of methods -->")
    README.write_text(made)
