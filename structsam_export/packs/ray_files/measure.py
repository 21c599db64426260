"""Photos and clicks a second against replicas, on this machine: python measure.py --replicas 1 2 4 --seconds 20

Starts a Ray of its own, one number of replicas after the other; a table in Markdown goes to stdout. Photos are noise of
640 x 480 pixels, each a new one, so that no embedding is found again; clicks are on one photo.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from app import Decoder, Encoder, Sam
from PIL import Image
from ray import serve

CLIENTS = 4  # for each replica


def photo(seed: int) -> bytes:
    """A new photo, as a file."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def post(url: str, body: bytes) -> Any:
    """The answer of a POST."""
    with urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=300) as answer:
        return json.load(answer)


def rate(ask: Any, clients: int, seconds: float) -> float:
    """Answers a second of `clients` that each ask again as soon as they were answered, after one answer each."""
    numbers = itertools.count()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: ask(next(numbers)), range(clients)))
        began = time.monotonic()

        def loop(_: int) -> int:
            done = 0
            while time.monotonic() < began + seconds:
                ask(next(numbers))
                done += 1
            return done

        done = sum(pool.map(loop, range(clients)))
        return done / (time.monotonic() - began)


def measured(replicas: int, seconds: float, port: int) -> tuple[float, float]:
    """Photos and clicks a second with so many encoders and decoders."""
    options = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": 1}}
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Sam.bind(Encoder.options(**options).bind(), Decoder.options(**options).bind()), name="sam")
    url = f"http://127.0.0.1:{port}"
    images = rate(lambda i: post(f"{url}/embed", photo(i)), CLIENTS * replicas, seconds)
    name = post(f"{url}/embed", photo(0))["image"]
    click = {"image": name, "points": [[320, 240]], "multimask": False}
    clicks = rate(lambda i: post(f"{url}/predict", json.dumps(click).encode()), CLIENTS * replicas, seconds)
    serve.shutdown()
    return images, clicks


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20)
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2 * max(asked.replicas) + 1, include_dashboard=False, log_to_driver=False)
    rows = [(n, *measured(n, asked.seconds, port)) for n in asked.replicas]
    print(f"{os.cpu_count()} CPU cores, one thread a replica, {asked.seconds:g} s each\n")
    print("| replicas of each | photos/s | ratio | clicks/s | ratio |\n|--:|--:|--:|--:|--:|")
    for n, images, clicks in rows:
        print(f"| {n} | {images:.2f} | {images / rows[0][1]:.2f} | {clicks:.1f} | {clicks / rows[0][2]:.2f} |")


if __name__ == "__main__":
    main()
