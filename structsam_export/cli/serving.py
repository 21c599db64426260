"""Exports on an address: `serve`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from structsam_export.cli.options import Command, options
from structsam_export.errors import BadInputError, UsageError
from structsam_export.reading import read_bytes

TOKEN = "STRUCTSAM_TOKEN"
MB = 1_000_000

access_options = options(
    click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; elsewhere needs a token."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."),
    click.option(
        "--token-file", type=click.Path(path_type=Path), help=f"A secret that clients must send. Or ${TOKEN}."
    ),
    click.option("--allow-origin", "origins", multiple=True, help="Another origin whose pages may ask; repeatable."),
    click.option("--allow-host", "hosts", multiple=True, help="Another name of this server; repeatable."),
)
limit_options = options(
    click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads."),
    click.option("--queue", type=click.IntRange(0, 4096), default=32, show_default=True, help="Requests that wait."),
    click.option("--timeout", type=click.FloatRange(1, 3600), default=60, show_default=True, help="Seconds a request."),
    click.option("--max-body", type=click.IntRange(1, 1024), default=32, show_default=True, help="MB of a body."),
    click.option(
        "--body-timeout",
        type=click.FloatRange(1, 600),
        default=20,
        show_default=True,
        help="Seconds for it.",
    ),
    click.option("--max-pixels", type=click.IntRange(1, 178), default=50, show_default=True, help="Million."),
    click.option(
        "--cache", type=click.IntRange(0, 1 << 16), default=256, show_default=True, help="MB of kept embeddings."
    ),
)


@click.command(cls=Command)
@click.argument("folders", nargs=-1, required=True, metavar="DIR [DIR2]", type=click.Path(path_type=Path))
@access_options
@limit_options
@click.option("--backend", default="auto", show_default=True, help="A backend, or eager, as 'predict'.")
def serve(
    folders: tuple[Path, ...],
    host: str,
    port: int,
    token_file: Path | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
    workers: int,
    queue: int,
    timeout: float,
    max_body: int,
    body_timeout: float,
    max_pixels: int,
    cache: int,
    backend: str,
) -> None:
    """Serve export DIR: a page to click on, and a JSON API.

    With DIR2, such as the same model without merging, the page shows both side by side. Listens on this machine only
    unless told otherwise. Ends on Ctrl-C or SIGTERM, after it has answered what it accepted.

    \b
    Example:
      structsam-export serve engines/mine
    """
    from structsam_export.serve import run
    from structsam_export.serve.settings import Settings

    if len(folders) > 2:
        raise UsageError("At most two exports are served. Pass DIR, or DIR and DIR2.")
    settings = Settings(
        host=host,
        port=port,
        token=_token(token_file),
        origins=tuple(origin.rstrip("/") for origin in origins),
        hosts=hosts,
        workers=workers,
        queue=queue,
        timeout=timeout,
        body_bytes=max_body * MB,
        body_seconds=body_timeout,
        pixels=max_pixels * MB,
        cache_bytes=cache * MB,
    )
    run(folders, settings, backend)


def _token(file: Path | None) -> str | None:
    """The secret, from a file or from the environment: command lines can be read by everybody on a machine."""
    if file is None:
        return os.environ.get(TOKEN) or None
    text = read_bytes(file, "Token", BadInputError)
    try:
        return text.decode("ascii").strip()
    except UnicodeDecodeError:
        raise BadInputError(f"Token {file} is not ASCII text. Make one with: openssl rand -hex 32.") from None
