"""Commands run by the thousand: a process that has imported everything forks once for each, and may kill it on the way.

The test talks to it through `Server`; `main` is the other side. Every command runs the real code. Faults that can be
asked for: `kill` ends the process before or after its n-th change of a folder's entries, as SIGKILL does; `exchange`
False makes renames behave as on file systems without exchange; `reach` ends a command where its long work would begin.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from fork_server import main; main()"
REACHED = "REACHED THE WORK"
CHANGES = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "symlink")


class Server:
    """The process that forks; `run` is one command."""

    def __init__(self):
        paths = [p or str(Path.cwd()) for p in sys.path]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "STRUCTSAM_SUPERVISE": "0", "COLUMNS": "200"}
        command = [sys.executable, "-c", START, json.dumps(paths)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *arguments, timeout=120, **faults):
        """Exit code (minus the signal), what was said, and the changes made until a kill."""
        request = {"arguments": [str(a) for a in arguments], "timeout": timeout, **faults}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["said"], answer["changes"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def main():
    """Answer requests, one line of JSON each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(forked(request)), file=answers, flush=True)


def prepare():
    """Import what commands use, register the tiny model, and take traces from the cache of the test run."""
    import onnxruntime  # noqa: F401
    import shared_traces
    import torch

    import structsam_export.benchmark
    import structsam_export.evaluate.command
    import structsam_export.evaluate.spectral
    import structsam_export.patch
    import structsam_export.precision
    import structsam_export.rewrite
    import structsam_export.sweep
    import structsam_export.validate.parity  # noqa: F401
    from structsam_export import models, pipeline
    from structsam_export.methods import METHODS, method_class

    for name in METHODS:
        method_class(name)
    torch.set_num_threads(1)
    models.ARCHITECTURES["tiny"] = "tiny_model:build"
    models.MODELS["tiny"] = models.ModelSpec("tiny", "tiny SAM", "tiny", "sam")
    pipeline.trace_stage = shared_traces.trace_stage


def forked(request):
    """One command in a fork of this process."""
    ours, theirs = os.pipe()
    log = Path(f"/tmp/structsam-fork-{os.getpid()}")
    log.write_text("")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(ours)
            run_child(request, theirs, log)
        os._exit(99)
    os.close(theirs)
    said, until = b"", time.monotonic() + request["timeout"]
    late = False
    while True:
        if time.monotonic() > until and not late:
            late = True
            os.killpg(child, signal.SIGKILL)
        if select.select([ours], [], [], 0.2)[0]:
            block = os.read(ours, 1 << 16)
            if not block:
                break
            said = (said + block)[-200_000:]
    os.close(ours)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    changes = log.read_text().splitlines()
    log.unlink()
    return {"code": "late" if late else code, "said": said.decode(errors="replace"), "changes": changes}


def run_child(request, out, log):
    """In the fork: redirect, prepare faults, run, exit."""
    import resource

    os.setsid()
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request.get("cwd") or str(Path.cwd()))
    os.environ.update(request.get("environment", {}))
    if request.get("exchange") is False:
        from structsam_export import drafts

        drafts.renamed = lambda *_: False
    if request.get("reach"):
        stop_at_work()
    if "kill" in request:
        kill_at(*request["kill"], request["within"], log)
    from structsam_export import cli

    if limit := request.get("memory"):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, limit in request.get("limits", {}).items():
        if limit == "now":  # nothing more than what is mapped already, and a little
            limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (8 << 20)
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    sys.argv = ["structsam-export", *request["arguments"]]
    code = 1
    try:
        cli.main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def stop_at_work():
    """End commands where their minutes of work would begin: everything that can be refused has been refused."""
    import urllib.error
    import urllib.request

    from structsam_export import benchmark, evaluate, pipeline, sweep
    from structsam_export.backends import BACKENDS, backend
    from structsam_export.errors import StructSAMError
    from structsam_export.evaluate import command, spectral
    from structsam_export.validate import stages

    class Reached(StructSAMError):
        exit_code = 0

    def reached(*_, **__):
        raise Reached(REACHED)

    def offline(*_, **__):
        raise urllib.error.URLError("no network in tests")

    for module, name in (
        *((pipeline, n) for n in ("trace_stage", "rewrite_into", "type_into")),
        *((stages, "eager_reference"), (benchmark, "bench"), (command, "watched"), (spectral, "compare")),
        *((evaluate, "evaluate"), (sweep, "filled")),
    ):
        setattr(module, name, reached)
    for name in BACKENDS:
        type(backend(name)).build = reached
    urllib.request.urlopen = offline


def kill_at(number, after, within, log):
    """End this process at its n-th change of entries below the folder `within`, and list the changes until then."""
    from structsam_export import drafts

    made = [0]
    file = log.open("w")

    def counting(change, name):
        def changed(*arguments, **given):
            where = " ".join(os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike)))
            if within not in where and given.get("dir_fd") is None:
                return change(*arguments, **given)
            made[0] += 1
            file.write(f"{made[0]} {name} {where}\n")
            file.flush()
            if made[0] == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return change(*arguments, **given)
            finally:
                if made[0] == number and after:
                    os.kill(os.getpid(), signal.SIGKILL)

        return changed

    for name in CHANGES:
        setattr(os, name, counting(getattr(os, name), name))
    drafts.renamed = counting(drafts.renamed, "renameat2")
