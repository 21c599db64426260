"""A real server: load, signals, slow and vanishing clients. `make test-serve`; SERVE_SECONDS is how long load lasts."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from demo_exports import PHOTOS, demo_export
from serve.processes import server

from structsam_export.runtime import Predictor, RunOptions, read_image
from structsam_export.runtime.regions import mask_of

SECONDS = float(os.environ.get("SERVE_SECONDS", "60"))
pytestmark = [pytest.mark.serve, pytest.mark.timeout(600 + SECONDS)]
CLIENTS = 32
POINTS = [(60, 40), (120, 90), (200, 150), (30, 170)]
NAMES = ("chelsea.jpg", "coffee.jpg", "coins.jpg")


class Client(threading.Thread):
    """Asks for masks of its own picture until it is told to stop; a 429 is asked again when the server said."""

    def __init__(self, url, number, until):
        super().__init__(daemon=True)
        self.url, self.number, self.until = url, number, until
        self.seconds, self.masks, self.wrong, self.broken = [], {}, [], []
        self.refused = self.answers = 0

    def run(self):
        data = (PHOTOS / NAMES[self.number % len(NAMES)]).read_bytes()
        limits = httpx.Limits(max_connections=1)
        with httpx.Client(base_url=self.url, timeout=120, limits=limits) as client:
            try:
                image = self.ask(client, "/v1/embed", content=data)["image"]
                turn = self.number
                while not self.until():
                    point = POINTS[turn % len(POINTS)]
                    found = self.ask(client, "/v1/predict", json={"image": image, "points": [point]})
                    self.masks[point] = found["masks"][0]["segmentation"]
                    turn += 1
            except httpx.TransportError as error:
                self.broken.append(error)

    def ask(self, client, path, **body):
        while True:
            began = time.perf_counter()
            answer = client.post(path, **body)
            self.answers += 1
            if answer.status_code == 200:
                self.seconds.append(time.perf_counter() - began)
                return answer.json()
            if answer.status_code != 429:
                self.wrong.append(f"{answer.status_code} {answer.text}")
                raise AssertionError(answer.text)
            self.refused += 1
            time.sleep(float(answer.headers["Retry-After"]))


def load(url, clients, until):
    """All clients, started."""
    made = [Client(url, number, until) for number in range(clients)]
    for client in made:
        client.start()
    return made


def figure(url, name):
    """A figure of /metrics."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_load_loses_nothing(capsys):
    """32 clients, a line of 16: nothing is lost, nothing grows, and every mask is `Predictor`'s."""
    folder = demo_export()
    with server(folder, "--backend", "onnxruntime", "--queue", "16") as running:
        end = time.monotonic() + SECONDS
        clients, worker, sizes = load(running.url, CLIENTS, lambda: time.monotonic() > end), running.worker(), []
        while any(client.is_alive() for client in clients):
            sizes.append((time.monotonic(), worker.memory_info().rss))
            time.sleep(0.5)
        code = running.stop()
    assert code == 0
    assert not [wrong for client in clients for wrong in (*client.wrong, *client.broken)]
    seconds = np.concatenate([client.seconds for client in clients])
    middle = np.median([size for at, size in sizes if at < end - SECONDS / 2][len(sizes) // 8 :])
    last = np.median([size for at, size in sizes[-len(sizes) // 8 :]])
    with capsys.disabled():
        print(
            f"\n{CLIENTS} clients, {SECONDS:g} s: {len(seconds)} answers, p50 {np.percentile(seconds, 50):.2f} s, "
            f"p99 {np.percentile(seconds, 99):.2f} s, {sum(client.refused for client in clients)} times 429, "
            f"memory {middle / 1e6:.0f} MB, at the end {last / 1e6:.0f} MB"
        )
    assert last < 1.1 * middle + 20e6
    requests = [line for line in running.lines("request") if line["status"] == 200]
    assert len(requests) == len(seconds)
    check_masks(folder, clients)


def check_masks(folder, clients):
    with Predictor(folder, "onnxruntime", options=RunOptions(threads=1)) as predictor:
        for number, name in enumerate(NAMES):
            predictor.set_image(read_image(PHOTOS / name))
            for point in POINTS:
                wanted = predictor.predict(np.array([point]), np.array([1]), multimask_output=False)[0][0]
                for client in clients[number :: len(NAMES)]:
                    if point in client.masks:
                        found = mask_of(client.masks[point])
                        assert (found != wanted).mean() < 1e-4  # the server has other threads than this predictor


def test_sigterm_during_load_answers_what_was_accepted():
    with server(demo_export(), "--backend", "onnxruntime") as running:
        ended = threading.Event()
        clients = load(running.url, 16, ended.is_set)
        time.sleep(6)
        code = running.stop()
        ended.set()
        for client in clients:
            client.join(60)
    assert code == 0
    answered = running.lines("request")
    assert {line["status"] for line in answered} <= {200, 429}
    assert sum(client.answers for client in clients) == len(answered) > 16
    assert all(client.broken and not client.wrong for client in clients)  # they saw the end of the server, no error
    assert running.lines("ending") and running.lines("ended")


def opened_socket(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def closed(one):
    """Whether the other side has ended a connection."""
    one.settimeout(5)
    try:
        while one.recv(4096):  # what it had answered before
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_slow_and_silent_clients_are_left():
    with server(demo_export(), "--backend", "onnxruntime", "--body-timeout", "2") as running:
        silent, began = opened_socket(running.url), time.monotonic()
        dripping = opened_socket(running.url)
        dripping.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")  # one request, and a slow head after it
        assert dripping.recv(4096).startswith(b"HTTP/1.1 200")
        with opened_socket(running.url) as slow:
            slow.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n")
            slow.settimeout(0.2)
            head = b""
            while not head and time.monotonic() < began + 10:
                slow.sendall(b"x")
                try:
                    head = slow.recv(4096)
                except TimeoutError:
                    assert httpx.get(f"{running.url}/healthz").status_code == 200
            assert head.startswith(b"HTTP/1.1 408")
            assert time.monotonic() < began + 6
        with silent, dripping:
            with suppress(OSError):
                for byte in b"GET /healthz HTTP/1.1":
                    dripping.sendall(bytes([byte]))
                    time.sleep(1)
            assert closed(silent) and closed(dripping)
        assert time.monotonic() < began + 40
        assert running.stop() == 0


def test_vanished_clients_leave_nothing_behind():
    with server(demo_export(), "--backend", "onnxruntime") as running:
        data = (PHOTOS / "coins.jpg").read_bytes()
        image = httpx.post(f"{running.url}/v1/embed", content=data, timeout=60).json()["image"]
        worker = running.worker()
        files = worker.num_fds()
        body = json.dumps({"image": image, "points_per_side": 64}).encode()
        head = b"POST /v1/everything HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        sockets = [opened_socket(running.url) for _ in range(20)]
        for one in sockets:
            one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(1)
        for one in sockets:
            one.close()
        name, began = 'structsam_line_requests{line="everything"}', time.monotonic()
        while figure(running.url, name) > 0:  # one has begun, and ends at its next batch of points
            assert time.monotonic() < began + 60
            time.sleep(0.3)
        assert worker.num_fds() <= files + 2
        assert httpx.post(f"{running.url}/v1/embed", content=data, timeout=60).status_code == 200
        assert {line["status"] for line in running.lines("request")} <= {200, 429, 499}
        assert running.stop() == 0
        assert not psutil.pid_exists(worker.pid)
