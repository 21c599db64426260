"""A headless Chromium, driven through its own pipe: the DevTools protocol needs no library."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-extensions")


def program():
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Broken(Exception):
    """The page threw, or the browser refused."""


class Tab:
    """One page. `errors` are what it said went wrong: exceptions, refusals of its content policy, failed loads."""

    def __init__(self, write, read):
        self.write, self.read, self.rest = write, read, b""
        self.ids, self.session, self.errors, self.asked = itertools.count(1), None, [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """One command and its result."""
        number = next(self.ids)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message(30)
            if answer.get("id") == number:
                if "error" in answer:
                    raise Broken(f"{method}: {answer['error']}")
                return answer["result"]

    def message(self, seconds):
        while b"\0" not in self.rest:
            if not select.select([self.read], [], [], seconds)[0]:
                raise Broken("the browser says nothing")
            data = os.read(self.read, 1 << 20)
            if not data:
                raise Broken("the browser has ended")
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\0")
        found = json.loads(text)
        self.note(found.get("method"), found.get("params", {}))
        return found

    def note(self, method, about):
        if method == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"].get("exception", {}).get("description", str(about)))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(about["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])

    def run(self, script):
        """The value of a script, promises awaited."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise Broken(found["exceptionDetails"].get("exception", {}).get("description", script))
        return found["result"].get("value")

    def until(self, script, seconds=60):
        """Wait until a script is true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise Broken(f"never came true: {script}; the page says: {self.run('document.body.innerText')[:600]}")
            time.sleep(0.05)
        return value

    def visit(self, url, width=1280, height=900, touch=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.errors.clear()
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def choose(self, selector, path):
        """Put a file into an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def mouse(self, *places, button="left"):
        """Press at the first place, move along, release at the last; in CSS pixels."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
        buttons = {"left": 1, "right": 2}[button]
        for kind, (x, y) in zip(kinds, (*places, places[-1])):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)

    def tap(self, x, y):
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name, text=None):
        about = {"key": name, **({"text": text} if text else {})}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name)

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder):
    """A tab of a fresh Chromium, with a profile in `folder` and no network but this machine's."""
    to_read, write = os.pipe()
    read, to_write = os.pipe()
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = [program(), *FLAGS, *sandbox, offline, f"--user-data-dir={folder}", "about:blank"]

    def pipes():  # the browser reads from 3 and writes to 4
        os.dup2(to_read, 103)
        os.dup2(to_write, 104)
        os.dup2(103, 3)
        os.dup2(104, 4)

    process = subprocess.Popen(
        command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Tab(write, read)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(write)
        os.close(read)
