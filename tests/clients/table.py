"""The table of `docs/packs.md`: a row for each program, kept beside the environments and printed at the end."""

from __future__ import annotations

import json

from clients.environments import home

COLUMNS = ("version", "plain", "merged", "plain, ours", "merged, ours", "note")


def keep(client: str, figures: dict[str, str]) -> None:
    """Add figures to a program's row."""
    path = home() / "table.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows[client] = rows.get(client, {}) | figures
    path.write_text(json.dumps(rows, indent=2))


def lines() -> list[str]:
    """The rows, in Markdown."""
    path = home() / "table.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    return [f"| {' | '.join((client, *(row.get(c, '-') for c in COLUMNS)))} |" for client, row in rows.items()]
