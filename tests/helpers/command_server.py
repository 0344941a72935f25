"""Runs commands of this repository as processes, quickly: one process imports the packages once and forks for each.

The fork runs the script exactly as `python script.py ...` would: own working directory, argv, stdout and stderr, own
exit code. Only the seconds that importing torch and transformers takes are shared.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import ROOT, SCRIPT


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


class Started(NamedTuple):
    """A command that may still be at work; `os.kill(pid, ...)` reaches it. Call `wait` once."""

    pid: int
    server: CommandServer
    folder: Path  # of its output

    def wait(self) -> Finished:
        """Its end; the code is negative where a signal ended it."""
        code = self.server.ask({"wait": self.pid})
        texts = [(self.folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
        shutil.rmtree(self.folder)
        return Finished(code, *texts)


class CommandServer:
    """`server.run("test_with_gradcam.py", "--help", cwd=folder)`; close it when done."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.helpers.command_server import serve; serve()"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str | Path, *arguments: str | Path, cwd: str | Path) -> Finished:
        """Run a script (relative to the repository) from working directory `cwd`."""
        return self.start(script, *arguments, cwd=cwd).wait()

    def start(
        self,
        script: str | Path,
        *arguments: str | Path,
        cwd: str | Path,
        first: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Started:
        """Start a script and come back at once. `first` is Python source that the process runs before the script."""
        folder = Path(tempfile.mkdtemp())
        request = {
            "argv": [str(ROOT / script), *map(str, arguments)],
            "cwd": str(cwd),
            "out": str(folder / "out"),
            "err": str(folder / "err"),
            "first": first,
            "environment": dict(environment or {}),
        }
        return Started(self.ask(request), self, folder)

    def ask(self, request: Mapping[str, object]) -> int:
        """One request to the server's process, and its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def start_ranks(commands: CommandServer, flags: list[str], cwd: Path, size: int, *first: str) -> list[Started]:
    """`size` processes of one run, with torchrun's environment. `first`: source for every rank, or for each its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    sources = first if len(first) == size else (first or ("",)) * size
    return [
        commands.start(
            SCRIPT, *flags, cwd=cwd, first=source, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank, source in enumerate(sources)
    ]


def run_ranks(commands: CommandServer, flags: list[str], cwd: Path, size: int) -> list[Finished]:
    """Their ends."""
    return [process.wait() for process in start_ranks(commands, flags, cwd, size)]


def serve() -> None:
    """The server's own loop. It must not compute with torch itself: threads do not survive a fork."""
    import sklearn.metrics  # noqa: F401
    import transformers
    from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: F401

    import test_with_gradcam  # noqa: F401
    import utils.gradcam_demo  # noqa: F401

    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _become(request)
        print(child, flush=True)


def _become(request: dict[str, object]) -> None:
    os.chdir(str(request["cwd"]))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(str(request[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = list(request["argv"])  # type: ignore[call-overload]  # a list of texts, from json
    sys.path[0] = str(Path(sys.argv[0]).parent)
    os.environ.update(request["environment"])  # type: ignore[call-overload]  # texts by texts, from json
    code = 0
    try:
        exec(str(request["first"]), {})
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
