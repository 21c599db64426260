"""A server on small exports: in the test's own process, or in one of its own."""

from __future__ import annotations

import pytest
from serve.small_pictures import png
from small_exports import rewritten
from starlette.testclient import TestClient

from structsam_export.serve.app import application
from structsam_export.serve.exports import opened
from structsam_export.serve.settings import Settings


@pytest.fixture
def tiny(shared_model, tmp_path_factory):
    """An export of a tiny model (96 px, embeddings 8 x 6 x 6) in FP32, made once: its folder."""
    folder = tmp_path_factory.getbasetemp() / "tiny-for-servers"
    return folder if folder.exists() else rewritten(folder, model="shared", checkpoint=str(shared_model), rate=0.5)


@pytest.fixture
def serving(tiny):
    """Makes a client of a server with settings: `serving(**settings)`; all end with the test."""
    open_ones = []

    def make(base_url="http://127.0.0.1:8000", **settings):
        exports = opened([tiny], "onnxruntime")
        served = exports.__enter__()
        # Errors of the server are answers here, as they are for clients.
        client = TestClient(application(served, Settings(**settings)), base_url, raise_server_exceptions=False)
        client.__enter__()
        open_ones.append((client, exports))
        client.served = served
        return client

    yield make
    for client, exports in open_ones:
        client.__exit__(None, None, None)
        exports.__exit__(None, None, None)


@pytest.fixture
def client(serving):
    return serving()


@pytest.fixture
def picture():
    return png()
