"""Runs commands of this repository as processes, quickly: one process imports the packages once and forks for each.

The fork runs the script exactly as `python script.py ...` would: own working directory, argv, stdout and stderr, own
exit code. Only the seconds that importing torch and transformers takes are shared.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


class CommandServer:
    """`server.run("test_with_gradcam.py", "--help", cwd=folder)`; close it, or use it in a `with` block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.command_server import serve; serve()"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str | Path, *arguments: str | Path, cwd: str | Path) -> Finished:
        """Run a script (relative to the repository) from working directory `cwd`."""
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder, "out"), Path(folder, "err")
            request = {
                "argv": [str(ROOT / script), *map(str, arguments)],
                "cwd": str(cwd),
                "out": str(files[0]),
                "err": str(files[1]),
            }
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return Finished(code, *(file.read_text(encoding="utf-8", errors="replace") for file in files))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


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
        child = os.fork()
        if child == 0:
            _become(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(request: dict[str, object]) -> None:
    os.chdir(str(request["cwd"]))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(str(request[name]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = list(request["argv"])  # type: ignore[call-overload]  # a list of texts, from json
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
