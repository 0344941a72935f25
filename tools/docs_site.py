"""For `mkdocs.yml`: pages keep the places that they have in the repository, so that their links stay as they are.

Also writes the reference of the public face from its docstrings. It is no file in `docs/`, because a reader of plain
Markdown would see nothing there.
"""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/**/*.md", "README_gradcam.md", "CHANGELOG.md", "benchmarks/*.md")
OTHER_FILES = ("assets/*.png", "benchmarks/plots/*.png", "examples/heatmaps.ipynb", "CITATION.cff", "LICENSE")
REFERENCE = "docs/reference.md"
HEAD = """# Reference

Everything that a user imports: `from utils.gradcam import …` inside DeepfakeBench or DF40, and
`from gradcam_kit import …` where it was installed with pip. [Python](api.md) shows how the names are used.
"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replaces the files of `docs/` by all pages and pictures, each under its path in the repository."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    for pattern in (*PAGES, *OTHER_FILES):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            theme.append(_placed(File.generated(config, name, abs_src_path=str(path)), name))
    theme.append(_placed(File.generated(config, REFERENCE, content=reference()), REFERENCE))
    return Files(theme)


def _placed(file: File, name: str) -> File:
    """The address of a page of `docs/` begins behind that folder, so that `docs/index.md` is the site's first page."""
    if file.is_documentation_page():
        file.dest_uri = file.dest_uri.removeprefix("docs/")
        file.url = file.url.removeprefix("docs/")
    return file


def reference() -> str:
    """One entry for each name of the public face, in the order of its table."""
    return "\n".join([HEAD, *(f"::: utils.gradcam_kit.{name}\n" for name in public_names())])


def public_names() -> list[str]:
    """Read them from the text, because a site is built without torch."""
    tree = ast.parse((ROOT / "utils" / "gradcam_kit" / "__init__.py").read_text(encoding="utf-8"))
    table = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PLACES"
    )
    return list(ast.literal_eval(table))
