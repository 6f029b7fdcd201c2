"""The pages of the site that lie outside docs/: README, CONTRIBUTING, CHANGELOG, runtime/README.

mkdocs calls the functions (`hooks` in mkdocs.yml). Each page keeps its place for readers of the
repository; here its links are turned to the site's pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "runtime/README.md": "runtime.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=turn_links(text, source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of the pages in docs/ that lead out of it."""
    uri = page.file.src_uri
    return markdown if uri in PAGES.values() else turn_links(markdown, f"docs/{uri}")


def turn_links(markdown: str, source: str) -> str:
    """The text with its links as the site has them.

    Args:
        markdown: the text.
        source: its path in the repository; links are relative to it.

    A link to a file that is no page of the site, such as an example, becomes its path as text.
    """

    def turn(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if not (ROOT / target).exists():
            return match[1]  # the strict build names it
        return PAGES.get(target, posixpath.relpath(target, "docs"))

    text = LINK.sub(turn, markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)]*)\)", r"`\2`", text).replace("`../", "`")
