"""What the documents say that can be checked: README.md, and the pages in docs/."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
ELSEWHERE = ("docker", "kubectl")  # programs that talk to a registry or a cluster


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every block of code in that language."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        found += [(page.relative_to(ROOT).as_posix(), text) for text in texts]
    return found


def commands() -> list[str]:
    """Every command of every page, once; a line that ends in a backslash goes on in the next."""
    joined = (re.sub(r" *\\\n *", " ", text) for _, text in blocks("sh"))
    return list(dict.fromkeys(line for text in joined for line in text.splitlines() if line))


def launches(line: str) -> bool:
    """Whether a command calls one of the launchers."""
    return "launch/" in line and not line.startswith(ELSEWHERE)


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
