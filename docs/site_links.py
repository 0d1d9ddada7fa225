"""Hook of MkDocs: links that work in the repository, made to work on the site.

Pages link to files outside `docs/`, which the site does not have (`[results](../benchmarks/results/actors.json)`).
On the site such a link is plain text with the file's path. CONTRIBUTING.md becomes a page of its own. A link to a file
that does not exist is a warning, which `mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.site_links")

ROOT = Path(__file__).parents[1]
# Files outside docs/ that are pages of the site all the same.
PAGES = {"CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
_FENCE = re.compile(r"^\s*(```|~~~)")
# Inline code is matched first, so that a link inside it stays as it is.
_LINK = re.compile(r"`[^`\n]*`|(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
_ELSEWHERE = re.compile(r"^(#|[a-z][a-z0-9+.-]*:)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that are written outside `docs/`."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "contributing.md", content=site_text(text, ROOT, "CONTRIBUTING.md")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Rewrites a page's links."""
    source = page.file.src_uri
    return markdown if source == "contributing.md" else site_text(markdown, ROOT / "docs", source)


def site_text(markdown: str, folder: Path, name: str) -> str:
    """The page with links for the site. `folder` is where its links start from, `name` is for warnings."""
    lines, in_code = [], False
    for line in markdown.split("\n"):
        if _FENCE.match(line):
            in_code = not in_code
        lines.append(line if in_code else _LINK.sub(lambda match: _link(match, folder, name), line))
    return "\n".join(lines)


def _link(match: re.Match[str], folder: Path, name: str) -> str:
    target = match["target"]
    if target is None or _ELSEWHERE.match(target):
        return match[0]
    path, hash_, anchor = target.partition("#")
    file = Path(os.path.normpath(folder / path))
    if not file.exists():
        log.warning("%s: the link to %s leads to no file", name, target)
        return match[0]
    docs = ROOT / "docs"
    if file.is_relative_to(docs):
        return f"{match['image']}[{match['text']}]({file.relative_to(docs).as_posix()}{hash_}{anchor})"
    inside = file.relative_to(ROOT).as_posix()
    if page := PAGES.get(inside):
        return f"[{match['text']}]({page}{hash_}{anchor})"
    shown = match["text"].strip("`")
    return f"`{inside}`" if inside.endswith(shown) else f"{match['text']} (`{inside}`)"
