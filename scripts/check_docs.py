"""Check what the documentation promises: links, files, make targets, commands, Python examples.

Owns: nothing but the reading of Markdown. A command is right when its verb
exists and its help names every option that the example uses; a Python example
is right when it compiles and every `vblk.name` in it exists.
"""

import ast
import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import vblk

ROOT = Path(__file__).resolve().parents[1]
VBLK = Path(sys.executable).parent / "vblk"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FOLDERS = ("src/", "tests/", "bench/", "scripts/", "docs/", ".ci/")


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as web pages of repositories make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def check_links(page: Path, prose: str) -> Iterator[str]:
    """Yield a sentence for every link that leads nowhere in this repository."""
    for link in LINK.findall(prose):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            yield f"the link {link} leads to no file"
        elif anchor and anchor not in anchors(target):
            yield f"the link {link} leads to no heading"


@functools.cache
def help_of(verb: str) -> str | None:
    """Return the help of a verb, or None where there is no such verb."""
    done = subprocess.run([VBLK, verb, "--help"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def check_command(line: str) -> Iterator[str]:
    """Yield a sentence for everything that is wrong with a `vblk` command."""
    words = shlex.split(line, comments=True)[1:]
    ends = [number for number, word in enumerate(words) if word in ("|", "&&", ">", ";", "||")]
    words = words[: ends[0]] if ends else words
    if not words or words[0].startswith("-") or words[0].isupper():
        return
    text = help_of(words[0])
    if text is None:
        yield f"vblk knows no verb {words[0]}: {line}"
        return
    for word in words[1:]:
        option = word.partition("=")[0]
        if re.fullmatch(r"-[A-Za-z]|--[a-z][\w-]*", option) and not re.search(
            rf"(?<![\w-]){re.escape(option)}(?![\w-])", text
        ):
            yield f"vblk {words[0]} has no option {option}: {line}"


def check_make(line: str) -> Iterator[str]:
    """Yield a sentence for every target that the Makefile lacks."""
    makefile = (ROOT / "Makefile").read_text()
    for word in shlex.split(line, comments=True)[1:]:
        if "=" not in word and not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE):
            yield f"the Makefile has no target {word}"


def check_line(line: str) -> Iterator[str]:
    """Yield what is wrong with a line that a reader may type."""
    line = line.strip().removeprefix("$ ")
    if line.startswith("vblk "):
        yield from check_command(line)
    elif line.startswith("make "):
        yield from check_make(line)


def check_python(text: str) -> Iterator[str]:
    """Yield a sentence for every name of vblk in an example that does not exist."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"a Python example does not compile: {error}"
        return
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="vblk"), attr=name) if not hasattr(vblk, name):
                yield f"vblk.{name} does not exist"
            case _:
                pass


def check_inline(text: str) -> Iterator[str]:
    """Yield what is wrong with a word of code within a sentence."""
    if text.startswith(FOLDERS) and not any(character in text for character in " *<>{"):
        if not (ROOT / text).exists():
            yield f"there is no {text}"
    else:
        yield from check_line(text)


def check_page(page: Path) -> Iterator[str]:
    """Yield everything that is wrong with a page."""
    text = page.read_text()
    prose = FENCE.sub("", text)
    yield from check_links(page, prose)
    for code in INLINE.findall(prose):
        yield from check_inline(code)
    for language, block in FENCE.findall(text):
        if language == "python":
            yield from check_python(block)
        else:
            for line in block.replace("\\\n", " ").splitlines():
                yield from check_line(line)


def main() -> int:
    """Check all pages, print what is wrong, return the exit status."""
    problems = [f"{page.relative_to(ROOT)}: {text}" for page in pages() for text in check_page(page)]
    print("\n".join(problems) or f"{len(pages())} pages: every link, file, command and example is good")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
