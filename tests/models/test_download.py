from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from structsam_export.errors import CheckpointError, OutputError
from structsam_export.models import MODELS, ModelSpec, download
from structsam_export.models.download import cache_dir, fetch, sha256_of

BODY = bytes(range(256)) * 40
SHA = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2


class Server(ThreadingHTTPServer):
    """Serves BODY; `mode` says how well. `asked` holds the Range header of every request (None without)."""

    daemon_threads = True
    mode = "range"
    body = BODY

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []

    def spec(self, **changes):
        url = f"http://127.0.0.1:{self.server_port}/weights/tiny.pth"
        fields = {"url": url, "sha256": SHA, "bytes": len(BODY), **changes}
        return ModelSpec("tiny", "Tiny", "demo", "sam", **fields)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if server.mode == "404" or (server.mode == "416" and wanted):
            self.send_error(int(server.mode))
            return
        ranged = bool(wanted) and server.mode == "range"
        body = server.body[start:] if ranged else server.body
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(body)))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.end_headers()
        self.wfile.write(body[:HALF] if server.mode == "cut" else body)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("STRUCTSAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def hashed(monkeypatch):
    """The paths that were hashed."""
    paths = []
    monkeypatch.setattr(download, "sha256_of", lambda path: paths.append(path) or sha256_of(path))
    return paths


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def failure(spec):
    with pytest.raises(CheckpointError) as caught:
        fetch(spec)
    return str(caught.value)


def test_sha256_of_a_known_string(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_more_than_one_piece(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 1_000_000 + b"a" * 1_000_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"a" * 2_000_000).hexdigest()
    with pytest.raises(CheckpointError, match="cannot be read"):
        sha256_of(tmp_path)


def test_cache_folder(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("STRUCTSAM_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "structsam-export"


def test_a_user_without_a_home_has_a_cache(tmp_path, monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("STRUCTSAM_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache_dir() == tmp_path / "structsam-export"


def test_download(server, tmp_path, capfd):
    path = fetch(server.spec())
    assert path == tmp_path / "cache" / "tiny.pth"
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["tiny.pth", "tiny.pth.sha256"]
    assert server.asked == [None]
    assert capfd.readouterr().out == ""  # stdout stays free


def test_cache_argument_wins(server, tmp_path):
    assert fetch(server.spec(), tmp_path / "other").parent == tmp_path / "other"


def test_a_verified_file_is_not_hashed_again(server, hashed):
    path = fetch(server.spec())
    hashed.clear()
    assert fetch(server.spec()) == path
    assert hashed == []
    assert len(server.asked) == 1


def test_a_changed_file_is_hashed_again_and_kept(server, cache, hashed):
    path = fetch(server.spec())
    path.write_bytes(b"x" + BODY[1:])
    hashed.clear()
    message = failure(server.spec())
    assert hashed == [path]
    got = hashlib.sha256(b"x" + BODY[1:]).hexdigest()
    assert str(path) in message and got in message and SHA in message and "Delete it" in message
    assert path.read_bytes() == b"x" + BODY[1:]
    assert len(server.asked) == 1


@pytest.mark.parametrize("note", ["", "[]", "{}", json.dumps({"sha256": SHA, "size": 1, "mtime_ns": 1})])
def test_a_bad_note_is_not_believed(server, cache, hashed, note):
    (cache / "tiny.pth").write_bytes(BODY)
    (cache / "tiny.pth.sha256").write_text(note)
    assert fetch(server.spec()) == cache / "tiny.pth"
    assert hashed == [cache / "tiny.pth"]
    known = json.loads((cache / "tiny.pth.sha256").read_text())
    stat = (cache / "tiny.pth").stat()
    assert known == {"sha256": SHA, "size": len(BODY), "mtime_ns": stat.st_mtime_ns}


def test_torch_hub_s_copy_is_used(server, hub, hashed):
    (hub / "tiny.pth").write_bytes(BODY)
    assert fetch(server.spec()) == fetch(server.spec()) == hub / "tiny.pth"
    assert hashed == [hub / "tiny.pth"]
    assert server.asked == []
    assert names(hub) == ["tiny.pth"]  # another program's folder: nothing is added


@pytest.mark.parametrize("content", [b"x" + BODY[1:], BODY[:HALF]])
def test_a_wrong_copy_in_torch_hub_is_ignored(server, hub, tmp_path, content):
    (hub / "tiny.pth").write_bytes(content)
    assert fetch(server.spec()).parent == tmp_path / "cache"
    assert (hub / "tiny.pth").read_bytes() == content


def test_resume_sends_a_range(server, cache):
    (cache / "tiny.pth.part").write_bytes(BODY[:HALF])
    assert fetch(server.spec()).read_bytes() == BODY
    assert server.asked == [f"bytes={HALF}-"]
    assert names(cache) == ["tiny.pth", "tiny.pth.sha256"]


def test_a_server_that_ignores_ranges_starts_over(server, cache):
    server.mode = "plain"
    (cache / "tiny.pth.part").write_bytes(b"y" * HALF)
    assert fetch(server.spec()).read_bytes() == BODY
    assert server.asked == [f"bytes={HALF}-"]


def test_a_server_that_refuses_the_range_is_asked_for_all(server, cache):
    server.mode = "416"
    (cache / "tiny.pth.part").write_bytes(BODY[:HALF])
    assert fetch(server.spec()).read_bytes() == BODY
    assert server.asked == [f"bytes={HALF}-", None]


def test_a_complete_part_needs_no_network(server, cache):
    (cache / "tiny.pth.part").write_bytes(BODY)
    assert fetch(server.spec()).read_bytes() == BODY
    assert server.asked == []


def test_a_part_that_is_too_long_starts_over(server, cache):
    (cache / "tiny.pth.part").write_bytes(BODY + b"!")
    assert fetch(server.spec()).read_bytes() == BODY
    assert server.asked == [None]


def test_a_broken_connection_keeps_the_part_and_resumes(server, cache):
    server.mode = "cut"
    message = failure(server.spec())
    assert names(cache) == ["tiny.pth.part"]
    assert (cache / "tiny.pth.part").read_bytes() == BODY[:HALF]
    for word in (server.spec().url, str(cache / "tiny.pth"), "--checkpoint", f"{HALF:,} of {len(BODY):,} bytes"):
        assert word in message
    server.mode = "range"
    assert fetch(server.spec()).read_bytes() == BODY
    assert server.asked == [None, f"bytes={HALF}-"]


def test_no_network(server, cache):
    spec = server.spec()
    server.shutdown()
    server.server_close()
    message = failure(spec)
    for word in (spec.url, str(cache / "tiny.pth"), "--checkpoint"):
        assert word in message
    assert names(cache) == []


def test_http_error(server, cache):
    server.mode = "404"
    assert "HTTP 404" in failure(server.spec())
    assert names(cache) == []


def test_a_page_instead_of_the_file_is_not_stored(server, cache):
    server.body = b"<html>log in</html>"
    (cache / "tiny.pth.part").write_bytes(BODY[:7])
    assert f"19 bytes, not {len(BODY):,}" in failure(server.spec())
    assert (cache / "tiny.pth.part").read_bytes() == BODY[:7]


def test_wrong_contents_are_discarded(server, cache):
    server.body = BODY[::-1]
    message = failure(server.spec())
    assert SHA in message and hashlib.sha256(BODY[::-1]).hexdigest() in message
    assert str(cache / "tiny.pth") in message
    assert names(cache) == []


def test_interrupt_leaves_only_the_part(server, cache, monkeypatch):
    pieces = iter([BODY[:HALF]])

    def read(_):
        piece = next(pieces, None)
        if piece is None:
            raise KeyboardInterrupt
        return piece

    monkeypatch.setattr(download, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.spec())
    assert names(cache) == ["tiny.pth.part"]
    assert (cache / "tiny.pth.part").read_bytes() == BODY[:HALF]


def test_a_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="STRUCTSAM_CACHE"):
        fetch(server.spec(), tmp_path / "file" / "cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(server, cache):
    (cache / "tiny.pth.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        fetch(server.spec())


def test_medsam_must_be_got_by_hand():
    message = failure(MODELS["medsam"])
    for word in ("medsam_vit_b.pth", "bowang-lab/MedSAM", "--checkpoint"):
        assert word in message
