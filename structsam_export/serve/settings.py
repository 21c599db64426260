"""Where a server listens, who may ask it, and how much it takes."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from structsam_export.errors import UsageError, shortened

MIB = 1 << 20
SHORTEST_TOKEN = 16  # characters


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Args:
        host, port: where it listens; port 0: any free one.
        token: what clients must send (`Authorization: Bearer ...`); None: nothing.
        origins: other web origins whose pages may ask, such as "https://labels.example".
        hosts: other names by which clients reach this server, where there is no token.
        workers: threads that embed and decode; another one segments everything.
        queue: requests that may wait for those threads; more are answered 429.
        timeout: seconds for which a request may wait and run.
        body_bytes, body_seconds: largest body, and how long a client may take to send it.
        uploads: bodies that are received at the same time.
        pixels: of a picture.
        points: of a prompt.
        cache_bytes: of pictures and embeddings that are kept.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    workers: int = 2
    queue: int = 32
    timeout: float = 60.0
    body_bytes: int = 32 * MIB
    body_seconds: float = 20.0
    uploads: int = 64
    pixels: int = 50_000_000
    points: int = 256
    cache_bytes: int = 256 * MIB

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def names(self) -> frozenset[str]:
        """What a request's Host may be where there is no token; any other name is a trick of a foreign page."""
        return frozenset({"localhost", "127.0.0.1", "::1", self.host.lower(), *map(str.lower, self.hosts)})

    def check(self) -> None:
        """Refuse what contradicts itself or is not safe.

        Raises:
            UsageError: with what to do.
        """
        if self.token is None and not self.loopback:
            raise UsageError(
                f"{shortened(self.host)} can be reached from other machines, so clients have to prove themselves. Pass "
                "--token-file FILE with a secret of at least 16 characters, or listen on 127.0.0.1."
            )
        if self.token is not None and (len(self.token) < SHORTEST_TOKEN or not self.token.isascii()):
            raise UsageError(f"A token is at least {SHORTEST_TOKEN} ASCII characters. Make one: openssl rand -hex 32.")
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
                raise UsageError(f"'{shortened(origin)}' is no web origin. Pass one like https://labels.example:8443.")
