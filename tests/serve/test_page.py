"""The page in a real Chromium: a photo, clicks, boxes, everything, keys, errors, a phone. Masks are `Predictor`'s."""

from __future__ import annotations

import base64
import json
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from demo_exports import PHOTOS, demo_export
from serve.browser import browser, program
from serve.processes import server
from small_exports import rewritten
from trace_cache import cached_file

from structsam_export.folder import ExportFolder
from structsam_export.runtime import Predictor, read_image
from structsam_export.runtime.token_maps import token_maps

pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(program() is None, reason="no Chromium here (apt-get install chromium)"),
]

PHOTO = PHOTOS / "coins.jpg"  # 384 x 303 px
CAPTIONS = "[...document.querySelectorAll('figure:not([hidden]) figcaption')].map(c => c.textContent)"
STATUS = "document.getElementById('status').textContent"


def said(text):
    """A script that is true when every caption says a text."""
    return f"{CAPTIONS}.every(text => text.includes({json.dumps(text)}))"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return demo_export(), cached_file("demo-dense-fp32", lambda place: rewritten(place, method="none"))


@pytest.fixture(scope="module")
def running(folders):
    with server(*folders, "--backend", "onnxruntime", "--max-body", "2") as one:
        yield one


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(chromium, running):
    """A fresh page on a desktop; it may have no errors and may ask nobody but its server."""
    chromium.asked.clear()
    chromium.visit(running.url)
    chromium.until(f"{STATUS}.startsWith('Ready')")
    yield chromium
    assert not chromium.errors
    assert all(url.startswith((running.url, "blob:", "data:", "about:")) for url in chromium.asked)


@pytest.fixture
def photo(tab):
    tab.choose("#file", PHOTO)
    tab.until(said("embedded in"))
    return tab


def place(tab, x, y, panel=0):
    """Where a pixel of the photo is on the screen."""
    frame = f"document.querySelectorAll('canvas')[{panel}].getBoundingClientRect()"
    left, top, width, height = tab.run(f"(f => [f.left, f.top, f.width, f.height])({frame})")
    return left + (x + 0.5) * width / 384, top + (y + 0.5) * height / 303


def masks(tab):
    """What the panels show, (H, W) bool each, from what they keep of the server's answers."""
    script = """(async () => {
      const { sampled } = await import("./masks.js");
      return window.structsam.panels.map(panel => panel.masks.map(mask => {
        const [h, w] = mask.segmentation.size;
        return btoa(Array.from(sampled(mask.segmentation, w, h), v => String.fromCharCode(v)).join(''));
      }));
    })()"""
    return [[np.frombuffer(base64.b64decode(m), np.uint8).reshape(303, 384) > 0 for m in p] for p in tab.run(script)]


def wanted(folders, **prompt):
    found = []
    for folder in folders:
        with Predictor(folder, "onnxruntime") as predictor:
            predictor.set_image(read_image(PHOTO))
            found.append(predictor.predict(**prompt, multimask_output=False)[0][0])
    return found


def check(tab, folders, **prompt):
    shown = masks(tab)
    assert [len(panel) for panel in shown] == [1, 1]
    for (mask,), true in zip(shown, wanted(folders, **prompt)):
        assert true.any() and (mask != true).mean() < 1e-4


def test_clicks_and_boxes_are_the_predictors(photo, folders):
    tab = photo
    tab.mouse(place(tab, 45, 55))
    tab.until(said("mask in"))
    check(tab, folders, point_coords=np.array([[45, 55]]), point_labels=np.array([1]))
    tab.mouse(place(tab, 60, 90), button="right")
    tab.until("window.structsam.steps.length === 2")
    tab.until(said("mask in"))
    tab.until("window.structsam.idle()")
    check(tab, folders, point_coords=np.array([[45, 55], [60, 90]]), point_labels=np.array([1, 0]))
    assert "IoU" in tab.run("document.getElementById('agreement').textContent")
    for _ in range(2):
        tab.key("u", "u")
    tab.until(said("click on an object"))
    assert masks(tab) == [[], []]
    tab.mouse(place(tab, 338, 16), place(tab, 360, 40), place(tab, 381, 62))  # a drag
    tab.until(said("mask in"))
    tab.until("window.structsam.idle()")
    check(tab, folders, box=np.array([338, 16, 381, 62]))
    shot(tab, "box")


HERE = """import("./decoding.js").then(d => d.broken() ? [d.broken()]
  : window.structsam.panels.every(p => d.ready(p.about, p.image)))"""


def decoded_by(tab):
    """Where the shown masks come from."""
    return tab.run("window.structsam.panels.map(panel => panel.place)")


def test_the_browsers_decoder_is_the_predictors(photo, folders, running):
    tab = photo
    assert tab.until(HERE) is True
    before = len([line for line in running.lines("request") if line["route"] == "/v1/predict"])
    prompts = [
        ({"points": [(45, 55, 1)]}, {"point_coords": np.array([[45, 55]]), "point_labels": np.array([1])}),
        ({"box": [338, 16, 381, 62]}, {"box": np.array([338, 16, 381, 62])}),
        (
            {"points": [(350, 30, 1), (20, 290, 0)], "box": [338, 16, 381, 62]},
            {
                "point_coords": np.array([[350, 30], [20, 290]]),
                "point_labels": np.array([1, 0]),
                "box": np.array([338, 16, 381, 62]),
            },
        ),
    ]
    for steps, prompt in prompts:
        tab.key("Escape")
        for x, y, label in steps.get("points", ()):
            tab.mouse(place(tab, x, y), button="left" if label else "right")
        if "box" in steps:
            x0, y0, x1, y1 = steps["box"]
            tab.mouse(place(tab, x0, y0), place(tab, (x0 + x1) / 2, (y0 + y1) / 2), place(tab, x1, y1))
        tab.until("window.structsam.idle()")
        tab.until(said("in this browser"))
        assert decoded_by(tab) == ["in this browser"] * 2
        check(tab, folders, **prompt)
    after = len([line for line in running.lines("request") if line["route"] == "/v1/predict"])
    assert after == before  # no click asked the server
    here = masks(tab)
    tab.run("document.getElementById('here').click()")
    tab.until(said("on the server"))
    tab.until("window.structsam.idle()")
    for (mine,), (servers,) in zip(here, masks(tab)):
        assert (mine != servers).mean() < 1e-4, (mine != servers).sum()
    # The policy lets WebAssembly be compiled and no text be run.
    found = tab.send("Runtime.evaluate", expression="(0, eval)('1')", allowUnsafeEvalBlockedByCSP=False)
    assert "unsafe-eval" in found["exceptionDetails"]["exception"]["description"]
    tab.errors.clear()


def test_without_webassembly_the_server_decodes(chromium, running, folders):
    tab = chromium
    script = "delete globalThis.Worker; globalThis.Worker = class { constructor() { throw new Error('none here'); } };"
    made = tab.send("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        tab.visit(running.url)
        tab.until(f"{STATUS}.startsWith('Ready')")
        tab.choose("#file", PHOTO)
        tab.until(said("embedded in"))
        tab.mouse(place(tab, 45, 55))
        tab.until(said("on the server"))
        tab.until("window.structsam.idle()")
        check(tab, folders, point_coords=np.array([[45, 55]]), point_labels=np.array([1]))
    finally:
        tab.send("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])


def test_merged_tokens_block_by_block(photo, folders):
    tab = photo
    buttons = tab.run("document.querySelectorAll('.tokens button').length")
    assert buttons == 1  # the dense export has no map
    tab.run("document.querySelector('.tokens button').focus()")
    tab.key("Enter", "\r")
    tab.until("document.querySelector('.tokens output').textContent.startsWith('block 0,')")
    before = tab.run("document.querySelector('canvas').toDataURL()")
    tab.run("document.querySelector('.tokens input').focus()")
    send = {"windowsVirtualKeyCode": 39, "code": "ArrowRight", "key": "ArrowRight"}
    for _ in range(2):
        tab.send("Input.dispatchKeyEvent", type="keyDown", **send)
        tab.send("Input.dispatchKeyEvent", type="keyUp", **send)
    tab.until("document.querySelector('.tokens output').textContent.startsWith('block 2,')")
    text = tab.run("document.querySelector('.tokens input').getAttribute('aria-valuetext')")
    maps = {m.block: m for m in token_maps(ExportFolder.read(folders[0]), read_image(PHOTO))}
    groups = len(np.unique(maps[2].groups))
    assert f"{maps[2].groups.size} tokens in {groups} groups" in text and groups < maps[2].groups.size
    assert tab.run("document.querySelector('canvas').toDataURL()") != before
    shot(tab, "tokens")
    tab.run("document.querySelector('.tokens button').click()")
    assert tab.run("document.querySelector('.tokens label').hidden")


def test_a_click_waits_for_the_embedding(tab, folders):
    tab.choose("#file", PHOTOS / "coffee.jpg")
    tab.until("document.querySelector('canvas').clientWidth > 0 && !document.getElementById('panels').hidden")
    tab.choose("#file", PHOTO)  # and another photo takes the place of one that is being sent
    tab.until(f"{STATUS}.includes('coins')")
    tab.mouse(place(tab, 45, 55))
    tab.until(said("mask in"))
    tab.until("window.structsam.idle()")
    check(tab, folders, point_coords=np.array([[45, 55]]), point_labels=np.array([1]))


def test_a_dropped_photo_is_opened(tab):
    text = base64.b64encode(PHOTO.read_bytes()).decode()
    tab.run(f"""(() => {{
      const bytes = Uint8Array.from(atob("{text}"), c => c.charCodeAt(0)), data = new DataTransfer();
      data.items.add(new File([bytes], "<img src=x onerror=alert(1)>.jpg", {{ type: "image/jpeg" }}));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", {{ bubbles: true, dataTransfer: data }}));
    }})()""")
    tab.until(said("embedded in"))
    assert tab.run(STATUS) == "<img src=x onerror=alert(1)>.jpg"
    assert tab.run("document.querySelectorAll('img').length") == 0


def test_everything_and_one_panel(photo):
    tab = photo
    tab.run("(s => { s.value = '0'; s.dispatchEvent(new Event('change')); })(document.getElementById('shown'))")
    assert tab.run("document.querySelectorAll('figure:not([hidden])').length") == 1
    tab.key("e", "e")
    tab.until(said(" in "), 120)
    tab.until("window.structsam.idle()", 120)
    assert len(masks(tab)[0]) > 5
    shot(tab, "everything")


def test_keys_alone_are_enough(photo, folders):
    tab = photo
    tab.run("document.querySelector('canvas').focus()")
    for _ in range(3):
        tab.key("ArrowLeft")
    tab.key("Enter", "\r")
    tab.until(said("mask in"))
    tab.until("window.structsam.idle()")
    x, y = tab.run("window.structsam.steps[0].point")[:2]
    check(tab, folders, point_coords=np.array([[x, y]]), point_labels=np.array([1]))
    tab.key("2", "2")
    assert tab.run("document.querySelector('input[name=tool]:checked').value") == "remove"
    tab.key("Escape")
    tab.until(said("click on an object"))


def test_what_goes_wrong_is_said(tab, tmp_path):
    (tmp_path / "words.jpg").write_text("no picture")
    tab.choose("#file", tmp_path / "words.jpg")
    tab.until(f"{STATUS}.includes('cannot show this file')")
    (tmp_path / "large.png").write_bytes(b"\0" * 2_100_000)
    tab.choose("#file", tmp_path / "large.png")
    tab.until(f"{STATUS}.includes('larger than 2 MB')")
    assert tab.run("document.getElementById('status').classList.contains('error')")
    assert tab.run("document.getElementById('panels').hidden")


def test_a_phone(chromium, running):
    tab = chromium
    tab.visit(running.url, width=360, height=740, touch=True)
    tab.until(f"{STATUS}.startsWith('Ready')")
    tab.choose("#file", PHOTO)
    tab.until(said("embedded in"))
    assert tab.run("document.documentElement.scrollWidth") <= 360  # nothing sticks out
    tops = tab.run("[...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().top)")
    assert tops[1] > tops[0] + 200  # one below the other
    small = tab.run("""[...document.querySelectorAll('#tools button, #tools .button')]
      .map(b => b.getBoundingClientRect()).filter(b => b.height < 44 || b.width < 44).length""")
    assert small == 0
    tab.tap(*place(tab, 45, 55))
    tab.until(said("mask in"))
    assert [len(panel) for panel in masks(tab)] == [1, 1]
    shot(tab, "phone")
    tab.run("document.querySelector('.tokens button').click()")
    tab.until("document.querySelector('.tokens output').textContent.startsWith('block 0,')")
    assert tab.run("document.documentElement.scrollWidth") <= 360
    sizes = "[...document.querySelectorAll('.tokens button, .tokens input')].map(b => b.getBoundingClientRect().height)"
    assert min(tab.run(sizes)) >= 44
    assert not tab.errors


def test_a_server_that_ends_is_said(folders, chromium):
    tab = chromium
    with ExitStack() as stack:
        one = stack.enter_context(server(folders[0], "--backend", "onnxruntime"))
        tab.visit(one.url)
        tab.until(f"{STATUS}.startsWith('Ready')")
        tab.choose("#file", PHOTO)
        tab.until(said("embedded in"))
        assert one.stop() == 0
    tab.mouse(place(tab, 45, 55))
    tab.until(f"{STATUS}.includes('does not answer')")


def test_a_token_is_asked_for(folders, chromium):
    tab, token = chromium, "0123456789abcdef"
    with server(folders[0], "--backend", "onnxruntime", environment={"STRUCTSAM_TOKEN": token}) as one:
        tab.visit(one.url)
        tab.until("!document.getElementById('unlock').hidden")
        tab.run(f"document.getElementById('token').value = '{token}'")
        tab.run("document.getElementById('unlock').requestSubmit()")
        tab.until(f"{STATUS}.startsWith('Ready')")
        assert token not in one.text()


def shot(tab, name):
    """A screenshot, where somebody wants them: $SERVE_SCREENSHOTS."""
    if folder := os.environ.get("SERVE_SCREENSHOTS"):
        tab.picture(Path(folder, f"{name}.png"))
