"""A benchmark's tables, from standard input, into RESULTS.md: `benchmark | python benchmarks/write_results.py NAME`.

They replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->`, with the date and the machine above them.
What comes in is passed on, so that it can be read as it comes.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def machine() -> str:
    """Processor, cores and versions, as far as the system tells."""
    import torch
    import transformers

    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    name = found[1] if found else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{os.cpu_count()} cores of {name}, {gpu}; {versions}"


def written(text: str, name: str, tables: str) -> str:
    """`text` with the section `name` replaced. Raises ValueError where it has none."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{RESULTS.name} has no section {start} … {end}")
    head = f"*{datetime.now(timezone.utc):%d %B %Y}, {machine()}.*"
    return f"{before}{start}\n{head}\n\n{tables.strip()}\n{end}{after}"


def main() -> None:
    (name,) = sys.argv[1:]
    lines = []
    for line in sys.stdin:
        print(line, end="", flush=True)
        lines.append(line)
    if not lines:
        sys.exit(f"{name}: the benchmark printed nothing, so RESULTS.md stays as it is")
    RESULTS.write_text(written(RESULTS.read_text(encoding="utf-8"), name, "".join(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
