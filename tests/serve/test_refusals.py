"""What is not answered: bad input, too much of it, foreign pages. The reason is told, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import threading
import time
import zlib

import pytest
from PIL import Image

from structsam_export.errors import UsageError
from structsam_export.serve.settings import Settings


def file(size, kind, **options):
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, kind, **options)
    return buffer.getvalue()


def claimed(width, height):
    """A PNG whose header says so, and that has no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def bomb():
    """A PNG of 5,000 x 5,000 px in 25 kB."""
    return file((5000, 5000), "PNG", compress_level=9)


HUGE = "[" + ",".join(["[1,2]"] * 10**6) + "]"
PICTURES = {
    "empty": (b"", 400, "empty"),
    "text": (b"hello", 415, "no PNG, JPEG"),
    "page": (b"<html><script>alert(1)</script>", 415, "no PNG"),
    "gif": (file((9, 9), "GIF"), 415, "no PNG"),
    "truncated": (file((300, 200), "JPEG")[:700], 400, "cannot be decoded"),
    "truncated png": (file((300, 200), "PNG", compress_level=0)[:500], 400, "cannot be decoded"),
    "20,000 x 20,000": (claimed(20_000, 20_000), 413, "400 million pixels"),
    "billions": (claimed(2**31 - 1, 2**31 - 1), 413, "million pixels"),
    "bomb": (bomb(), 413, "25 million pixels"),
    "pages": (file((9, 9), "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]), 400, "2 pages"),
    "only magic": (b"\x89PNG\r\n\x1a\n", 400, "picture"),
}


@pytest.fixture
def client(serving, picture):
    """With small limits, and a picture."""
    client = serving(pixels=10_000_000, body_bytes=8_000_000, points=256)
    client.image = client.post("/v1/embed", content=picture).json()["image"]
    return client


def alive(client):
    body = {"image": client.image, "points": [[20, 24]]}
    return client.post("/v1/predict", json=body).status_code == 200


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("way", ["embed", "predict"])
def test_bad_pictures_are_refused(client, name, way):
    data, status, reason = PICTURES[name]
    if way == "embed":
        answer = client.post("/v1/embed", content=data, headers={"Content-Type": "image/png"})
    else:
        text = "data:image/png;base64," + base64.b64encode(data).decode()
        answer = client.post("/v1/predict", json={"image": text, "points": [[1, 1]]})
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["error"]
    assert "/tmp" not in answer.text and "structsam-" not in answer.text
    assert alive(client)


QUESTIONS = {
    "no JSON": (b"{", 400, "no JSON"),
    "not UTF-8": (b'{"image": "\xff"}', 400, "no JSON"),
    "a list": (b"[1]", 422, "body"),
    "deep": (b"[" * 200_000, 400, "no JSON"),
    "10^6 points": (f'{{"image": "IMAGE", "points": {HUGE}}}'.encode(), 422, "at most 4096"),
    "300 points": (json.dumps({"image": "IMAGE", "points": [[1, 2]] * 300}).encode(), 422, "256"),
    "NaN": (b'{"image": "IMAGE", "points": [[NaN, 1]]}', 422, "finite"),
    "infinity": (b'{"image": "IMAGE", "points": [[1e999, 1]]}', 422, "points.0.0"),
    "huge": (b'{"image": "IMAGE", "box": [0, 0, 1e30, 1]}', 422, "box.2"),
    "long number": (b'{"image": "IMAGE", "box": [0, 0, ' + b"9" * 10_000 + b", 1]}", 400, "out of range"),
    "words": (b'{"image": "IMAGE", "points": [["a", "b"]]}', 422, "points.0.0"),
    "labels": (b'{"image": "IMAGE", "points": [[1, 1]], "labels": [1, 0]}', 422, "label"),
    "label 7": (b'{"image": "IMAGE", "points": [[1, 1]], "labels": [7]}', 422, "labels.0"),
    "no prompt": (b'{"image": "IMAGE"}', 422, "prompt"),
    "empty points": (b'{"image": "IMAGE", "points": []}', 422, "no prompt"),
    "unknown field": (b'{"image": "IMAGE", "points": [[1, 1]], "<b>": 1}', 422, "Extra inputs"),
    "path as a picture": (b'{"image": "../../etc/passwd", "points": [[1, 1]]}', 400, "neither"),
    "path as an export": (b'{"image": "IMAGE", "export": "../../x", "points": [[1, 1]]}', 404, "no export"),
    "page as an export": (b'{"image": "IMAGE", "export": "<script>", "points": [[1, 1]]}', 404, "no export"),
    "another URI": (b'{"image": "data:text/html,<b>", "points": [[1, 1]]}', 400, "not base64"),
    "address": (b'{"image": "http://127.0.0.1/x.png", "points": [[1, 1]]}', 400, "neither"),
    "unknown picture": (b'{"image": "' + b"0" * 64 + b'", "points": [[1, 1]]}', 404, "embed again"),
    "short mask": (b'{"image": "IMAGE", "points": [[1, 1]], "mask_input": "AAAA"}', 422, "mask_input is 3 bytes"),
    "mask of words": (b'{"image": "IMAGE", "points": [[1, 1]], "mask_input": "?"}', 422, "no base64"),
    "model of numbers": (b'{"model": 7, "image": "IMAGE"}', 422, "model"),
    "unknown model": (b'{"model": "x", "image": "IMAGE"}', 404, "no export"),
    "mark": (b'{"model": "NAME", "image": "IMAGE", "params": {"marks": [{"type": "point", "data": [1]}]}}', 422, "two"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_bad_questions_are_refused(client, name):
    body, status, reason = QUESTIONS[name]
    body = body.replace(b"IMAGE", client.image.encode()).replace(b"NAME", next(iter(client.served)).encode())
    answer = client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert alive(client)


def test_a_mask_of_nan_is_no_mask(client):
    text = base64.b64encode(struct.pack("<f", float("nan")) * 24 * 24).decode()
    answer = client.post("/v1/predict", json={"image": client.image, "points": [[1, 1]], "mask_input": text})
    assert answer.status_code == 422 and "finite" in answer.json()["error"]


def test_large_bodies_are_refused_before_they_are_read(client):
    long = client.post("/v1/predict", content=b"[" + b"1," * 5_000_000, headers={"Content-Type": "application/json"})
    assert long.status_code == 413 and "8 MB" in long.json()["error"]

    def parts():  # without a Content-Length
        for _ in range(100):
            yield b"x" * 100_000

    assert client.post("/v1/embed", content=parts()).status_code == 413
    assert alive(client)


def test_compressed_bodies_and_other_types_are_refused(client):
    zipped = zlib.compress(b"\0" * 10**6)
    assert client.post("/v1/embed", content=zipped, headers={"Content-Encoding": "deflate"}).status_code == 415
    assert client.post("/v1/predict", content=b"a=1", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/v1/embed?format=exe", content=b"").status_code == 422


@pytest.mark.parametrize(
    "path", ["/../manifest.json", "/..%2f..%2fpyproject.toml", "/%00", "/v1/nothing", "/style.css/x"]
)
def test_only_the_page_is_served(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["error"]
    assert client.get("/v1/predict").status_code == 405


def test_too_much_at_once_is_told_when_to_come_again(serving, picture, monkeypatch):
    client = serving(workers=1, queue=1)
    segmenter = client.app.state.api.segmenter
    release, entered = threading.Event(), threading.Semaphore(0)
    embed = segmenter.embed

    def slow(*given):
        entered.release()
        release.wait(20)
        return embed(*given)

    monkeypatch.setattr(segmenter, "embed", slow)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.post("/v1/embed", content=picture))) for _ in "ab"]
    threads[0].start()
    assert entered.acquire(timeout=10)
    threads[1].start()
    line = client.app.state.api.clicks
    until(lambda: line.inside == 2)
    refused = client.post("/v1/embed", content=picture)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert client.get("/healthz").status_code == 200
    release.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    until(lambda: line.inside == 0)
    assert 'structsam_line_refused_total{line="clicks"} 1.0' in client.get("/metrics").text


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_takes_too_long_is_given_up(serving, picture, monkeypatch):
    client = serving(timeout=0.3)
    segmenter, stopped = client.app.state.api.segmenter, []

    def endless(asked, job):
        while True:
            time.sleep(0.02)
            try:
                job.check()
            except Exception as error:
                stopped.append(error)
                raise

    monkeypatch.setattr(segmenter, "everything", endless)
    answer = client.post("/v1/everything", json={"image": "x"})
    assert answer.status_code == 503 and "0.3 s" in answer.json()["error"]
    until(lambda: stopped and client.app.state.api.everything_line.inside == 0)


def test_bugs_are_told_without_details(client, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(client.app.state.api.segmenter, "predict", broken)
    answer = client.post("/v1/predict", json={"image": client.image, "points": [[1, 1]]})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    name = re.search(r"request (\w+)", answer.json()["error"])[1]
    assert answer.headers["x-request-id"] == name
    assert any(record.message == "failed" and record.fields["id"] == name for record in caplog.records)


# ---- Who may ask


def test_other_origins_are_refused_unless_allowed(serving, picture):
    client = serving(origins=("https://labels.example",))
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:9", 403),
        ("http://127.0.0.1:8000", 200),
        ("https://labels.example", 200),
    ):
        answer = client.post("/v1/embed", content=picture, headers={"Origin": origin})
        assert answer.status_code == status, origin
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == ("https://labels.example" if origin == "https://labels.example" else None)
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert client.options("/v1/embed", headers={"Origin": "https://evil.example", **preflight}).status_code == 403
    assert client.options("/v1/embed", headers={"Origin": "https://labels.example", **preflight}).status_code == 200
    assert client.get("/v1/exports", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_other_names_are_refused(serving):
    """A foreign page that rebinds its own name to 127.0.0.1 still sends that name."""
    client = serving(hosts=("sam.lan",))
    for host, status in (
        ("evil.example", 403),
        ("sam.lan:8000", 200),
        ("localhost:1", 200),
        ("[::1]:8000", 200),
        ("", 403),
    ):
        assert client.get("/v1/exports", headers={"Host": host}).status_code == status, host


def test_a_token_opens_the_api_and_not_the_page(serving, picture):
    client = serving(token="0123456789abcdef", host="0.0.0.0")
    assert client.get("/").status_code == client.get("/healthz").status_code == 200
    for path in ("/v1/exports", "/v1/models", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer 0123456789abcdeF"}).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer 0123456789abcdef"}).status_code == 200
        assert client.get(path, headers={"Token": "0123456789abcdef"}).status_code == 200
    assert client.post("/v1/embed", content=picture).status_code == 401
    assert client.post("/v1/embed", content=picture).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "settings",
    [{"host": "0.0.0.0"}, {"host": "192.0.2.1"}, {"token": "short"}, {"origins": ("labels.example",)}, {"host": "::"}],
)
def test_unsafe_settings_are_refused(settings):
    with pytest.raises(UsageError):
        Settings(**settings).check()
    Settings(host="::1").check()
    Settings(host="0.0.0.0", token="0123456789abcdef").check()


def test_the_page_runs_nothing_of_others(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "http" not in policy
    text = answer.text
    assert "<script>" not in text and "style=" not in text and not re.search(r"\bon\w+=", text)
    for name in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert client.get(f"/{name}").status_code == 200
        assert "//" not in name
    assert client.get("/main.js").headers["content-type"].startswith("text/javascript")


def test_logs_say_nothing_of_what_was_sent(client, caplog):
    caplog.set_level("INFO")
    client.post("/v1/predict", json={"image": "secret-name", "points": [[1, 1]]})
    client.get("/secret-path?token=secret-query%1b[31m", headers={"Authorization": "Bearer secret-token"})
    from structsam_export.serve.logs import JSONLines

    lines = [JSONLines().format(record) for record in caplog.records if record.name == "structsam_export.serve"]
    assert len(lines) >= 2
    assert all(json.loads(line)["event"] == "request" for line in lines)
    assert "secret" not in "".join(lines)
