"""The way of a newcomer: what the pages say to type, typed, in order, on a system that has nothing of aioblk.

./run release has each new system do it, by ``python3 newcomer.py`` beside ``docs/`` and ``dist/``; it needs
no more than Python. It installs packages and leaves files in the current directory: it is for systems that
are thrown away.

A block of the pages below a comment that begins with ``<!-- not run:`` needs what a machine may lack, and is
passed over.
"""

import os
import re
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["WAY", "Act", "StumbleError", "Terminal", "acts_of", "main", "section", "walk"]

WAY = (("docs/install.md", "## The wheel"), ("docs/tutorial.md", ""))
"""Pages, and the heading of the part of each; "" is all of it."""

NOT_RUN = "<!-- not run:"
SILENCE = 300.0
"""Seconds of silence after which a command is said to hang; the longest of them download."""

FENCE = re.compile(r"^```(\w*)$")
INTO = re.compile(r"\binto `([\w./-]+)`")
STARTS_PROMPT = re.compile(r"\bpython3? -m asyncio\b")
FAILED = re.compile(r'^(Traceback \(|\s*File "<)', re.MULTILINE)
PRINTS = re.compile(r"^\s*print\(.*\)\s+# (?P<shows>.+)$", re.MULTILINE)


class StumbleError(Exception):
    """Where the page was followed and did not lead on, and what was seen instead."""


@dataclass
class Act:
    """One thing that a page has its reader do."""

    where: str
    """The page and the line."""
    kind: Literal["command", "typed", "file"]
    """Given to the shell, typed at Python's prompt, or put into a file."""
    text: str
    into: str = ""
    """The file."""
    shows: list[str] = field(default_factory=list)
    """What the page says that is seen then; three dots are for anything."""


# --- what the pages say -----------------------------------------------------------------------------------


def section(text: str, heading: str) -> str:
    """Below the heading, up to the next one of its level; lines keep their numbers."""
    if not heading:
        return text
    before, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    if not found:
        raise StumbleError(f"there is no {heading!r}")
    level = heading.partition(" ")[0]
    return "\n" * (before.count("\n") + 1) + rest.partition(f"\n{level} ")[0]


def acts_of(page: str, text: str) -> Iterator[Act]:
    """In the order in which they stand there."""
    paragraph: list[str] = []
    lines = iter(enumerate(text.split("\n"), 1))
    for _, line in lines:
        fence = FENCE.match(line)
        if not fence:
            if line and paragraph and not paragraph[-1]:
                paragraph.clear()
            paragraph.append(line)
            continue
        block: list[tuple[int, str]] = []
        for inside in lines:
            if inside[1] == "```":
                break
            block.append(inside)
        said = " ".join(paragraph).strip()
        paragraph.clear()
        if block and not said.startswith(NOT_RUN):
            yield from _acts_of_block(page, fence[1], said, block)


def _acts_of_block(page: str, language: str, said: str, block: list[tuple[int, str]]) -> Iterator[Act]:
    where, code = f"{page}:{block[0][0]}", "\n".join(line for _, line in block)
    if language == "console":
        yield from _acts_of_console(page, block)
    elif language == "python" and (named := INTO.search(said)):
        yield Act(where, "file", code + "\n", named[1])
    elif language == "python":
        yield Act(where, "typed", code, shows=PRINTS.findall(code))


def _acts_of_console(page: str, block: list[tuple[int, str]]) -> Iterator[Act]:
    acts: list[Act] = []
    for number, line in block:
        if line.startswith("$ "):
            acts.append(Act(f"{page}:{number}", "command", line[2:]))
        elif line.startswith(">>> "):
            acts.append(Act(f"{page}:{number}", "typed", line[4:]))
        elif acts and acts[-1].text.endswith("\\"):
            acts[-1].text += f"\n{line}"
        elif acts:
            acts[-1].shows.append(line)
        else:
            raise StumbleError(f"{page}:{number}: output of no command: {line}")
    yield from acts


# --- doing it ---------------------------------------------------------------------------------------------


class Terminal:
    """A shell, and Python's prompt when it was started there. Both read what is typed, as from a person."""

    def __init__(self, directory: Path, silence: float = SILENCE) -> None:
        """*silence*: seconds without output after which an act is given up."""
        self._directory = directory
        self._silence = silence
        self._at_prompt = False
        self._shell = subprocess.Popen(
            ["bash", "--norc"],
            cwd=directory,
            env={**os.environ, "PYTHON_BASIC_REPL": "1", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def do(self, act: Act) -> str:
        """What was seen. Raises StumbleError."""
        if act.kind == "file":
            (self._directory / act.into).write_text(act.text)
            return ""
        seen = self._type(act) if act.kind == "typed" else self._command(act)
        for shown in act.shows:
            pattern = ".*".join(re.escape(part) for part in re.split(r"\s*\.{3}\s*", shown.strip()))
            if not re.search(pattern, seen):
                raise StumbleError(f"{act.where}: is to show {shown!r}, and shows {seen!r}")
        return seen

    def close(self) -> None:
        """End the shell; what it has in the background is left to the system's end."""
        self._shell.kill()
        self._shell.wait()
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()

    def _command(self, act: Act) -> str:
        if self._at_prompt:
            # Python reads ahead: what is for the shell is not sent before it has ended.
            self._until_mark(act, 'import atexit; atexit.register(print, "{}", 0); exit()')
            self._at_prompt = False
        self._send(act.text)
        if STARTS_PROMPT.search(act.text):
            self._at_prompt = True
            return self._until_mark(act, 'print("{}", 0)')
        return self._until_mark(act, "echo {} $?")

    def _type(self, act: Act) -> str:
        if not self._at_prompt:
            raise StumbleError(f"{act.where}: is typed at a prompt of Python, and none was started")
        self._send(f"{act.text}\n")
        seen = re.sub(r"^((>>>|\.\.\.) )+", "", self._until_mark(act, 'print("{}", 0)'), flags=re.MULTILINE)
        if FAILED.search(seen):
            raise StumbleError(f"{act.where}: fails:\n{seen}")
        return seen

    def _until_mark(self, act: Act, say: str) -> str:
        """Have *say* said when the act is over, and return what was seen before."""
        mark = f"mark-{secrets.token_hex(8)}"
        self._send(say.format(mark))
        ends = re.compile(rf"{mark} (\d+)\n")
        seen, deadline = b"", time.monotonic() + self._silence
        assert self._shell.stdout is not None
        while True:
            ready, _, _ = select.select([self._shell.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._shell.stdout.fileno(), 65536) if ready else b""
            seen += piece
            text = seen.decode(errors="replace")
            if found := ends.search(text):
                break
            if not piece:
                how = "ends the shell" if ready else f"shows nothing for {self._silence:.0f} seconds"
                raise StumbleError(f"{act.where}: {act.text!r} {how}; before, it was:\n{text}")
            deadline = time.monotonic() + self._silence
        if found[1] != "0":
            raise StumbleError(
                f"{act.where}: {act.text!r} ends with status {found[1]}:\n{text[: found.start()]}"
            )
        return text[: found.start()]

    def _send(self, text: str) -> None:
        assert self._shell.stdin is not None
        try:
            self._shell.stdin.write(f"{text}\n".encode())
        except BrokenPipeError:
            raise StumbleError(f"the shell has ended before {text!r}") from None


def walk(root: Path, directory: Path) -> tuple[int, int]:
    """Do all that the pages in *root* say, in *directory*, and print it: how many acts, how many of them at a
    prompt. Raises StumbleError."""
    done = typed = 0
    terminal = Terminal(directory)
    try:
        for page, heading in WAY:
            for act in acts_of(page, section((root / page).read_text(), heading)):
                print(f"{act.where}: {act.into or act.text}", flush=True)
                print(terminal.do(act), end="", flush=True)
                done, typed = done + 1, typed + (act.kind == "typed")
    finally:
        terminal.close()
    return done, typed


def main() -> int:
    Path("/etc/apt/apt.conf.d/99yes").write_text(
        'APT::Get::Assume-Yes "true";\n'
    )  # as who is asked would say
    subprocess.run(["apt-get", "update", "-q"], check=True)  # whose lists are as old as the system's base
    try:
        done, typed = walk(Path(), Path())
    except StumbleError as stumble:
        print(f"newcomer: {stumble}")
        return 1
    print(f"\n{done} steps of {' and '.join(page for page, _ in WAY)}, {typed} of them at the prompt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
