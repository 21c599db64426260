"""A child process that runs steps: a crash of native code, a GPU error or a hang costs one step, not the suite.

One child runs many steps, because importing PyTorch takes seconds. It is replaced after a failure, as an error of CUDA
stays with its process, and where a step needs the other TensorRT: one process can use one only.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]


class Lost(Exception):
    """The child died or was stopped; the message says which."""


class Worker:
    """The parent's end: starts the child, hands it steps, waits no longer than allowed."""

    def __init__(self, log: Path, *, hide_gpu: bool = False) -> None:
        path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = (
            os.environ
            | {"PYTHONPATH": path}
            | ({"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"} if hide_gpu else {})
        )
        self.log, self.replies = log, queue.Queue[str]()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpu_suite.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Pass lines on; an empty one says that the child is gone. A thread, because pipes know no timeout."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.replies.put(line)
        self.replies.put("")

    def ask(self, action: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Run "module:function" in the child: {"result": ...} or {"error": last line of the traceback}.

        Raises:
            Lost: the child died, or took longer than `timeout` seconds and was stopped.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"action": action, "arguments": arguments}) + "\n")
            self.process.stdin.flush()
            line = self.replies.get(timeout=max(timeout, 0.1))
        except queue.Empty:
            self.close()
            raise Lost(f"stopped after {timeout:.0f} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            self.close()
            raise Lost(f"the process died with code {code}; {self.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def last_words(self) -> str:
        """The end of what the children wrote to stderr."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"

    def close(self) -> None:
        """End the child."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def main() -> None:
    """The child's end; whatever a library prints goes to stderr."""
    from importlib import import_module

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        module, _, function = request["action"].partition(":")
        try:
            reply = {"result": getattr(import_module(module), function)(**request["arguments"])}
            text = json.dumps(reply)
        except Exception as error:  # told to the parent, which records it and goes on
            traceback.print_exc()
            said = traceback.format_exception_only(error)[-1].strip().splitlines()
            text = json.dumps({"error": said[0] if said else type(error).__name__})
        print(text, file=answers, flush=True)


if __name__ == "__main__":
    main()
