"""The Markdown pages of the repository: their blocks of code, their headings and their links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "examples", "findings", "kernels")
PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *(REPOSITORY / folder / "README.md" for folder in FOLDERS),
    ]
)

_FENCE = re.compile(r"^( *)```(\S*)$")
# "ci: NAME" marks a command that .ci/run takes from the page and runs as it stands.
_MARK = re.compile(r"^ *<!-- (?:not run|ci): (\S.*) -->$")


class Block(NamedTuple):
    """A fenced block: page, number of its first line, language, text, and the reason of its mark, if it has one."""

    page: Path
    line: int
    language: str
    text: str
    mark: str | None


def page_name(page: Path) -> str:
    """Name of a page, for the ids of tests."""
    return page.relative_to(REPOSITORY).as_posix()


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks, number = [], 0
    while number < len(lines):
        begin = _FENCE.match(lines[number])
        if begin is None:
            number += 1
            continue
        indent, language = begin.groups()
        end = lines.index(f"{indent}```", number + 1)
        mark = _MARK.match(lines[number - 1]) if number else None
        text = "\n".join(line.removeprefix(indent) for line in lines[number + 1 : end])
        blocks.append(Block(page, number + 2, language, text, mark and mark.group(1)))
        number = end + 1
    return blocks


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, word by word; they are joined by line breaks and && alone."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(words[:end])
            words = words[end + 1 :]
    return found


def prose(page: Path) -> str:
    """Text of a page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, those of the web left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Names that the headings of a page have as targets of links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
