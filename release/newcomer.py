"""The way of a newcomer: what the pages say to type, typed, in order, on a system that has nothing of aioblk.

./run release has each new system do it, by ``python3 newcomer.py`` beside ``docs/`` and ``dist/``; it needs
no more than Python. It installs packages and leaves files in the current directory: it is for systems that
are thrown away.

A block of the pages below a comment that begins with ``<!-- not run:`` needs what a machine may lack, and is
passed over.
"""

import codecs
import errno
import os
import pty
import re
import secrets
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["WAY", "Act", "StumbleError", "Terminal", "acts_of", "as_read", "main", "section", "walk"]

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

ROWS_AND_COLUMNS = (50, 160)
ENVIRONMENT = {"TERM": "xterm", "DEBIAN_FRONTEND": "noninteractive"}
LOCAL_MODES = 3
"""Their place among the modes of a terminal."""
BEGINS_EDITING = re.compile(r"\x1b\[\?2004h")
"""What is pasted is to be told apart from keys, from here on."""
EDITING = re.compile(rf"{BEGINS_EDITING.pattern}.*?(\x1b\[\?2004l|\Z)", re.DOTALL)
ASIDE = re.compile(r"\x1b7.*?\x1b8", re.DOTALL)
"""With the cursor back where it was: apt's bar, at the bottom."""
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")


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
    """A shell, and Python's prompt when it was started there. Both read what is typed, as from a person.

    They are in a real terminal: from CPython 3.13 on, the prompt takes blocks of several lines only where it
    can edit them.
    """

    def __init__(self, directory: Path, silence: float = SILENCE) -> None:
        """*silence*: seconds without output after which an act is given up."""
        self._directory = directory
        self._silence = silence
        # The prompt of the shell is awaited, as a person does: programs may take what is typed ahead of it.
        self._prompt = f"prompt-{secrets.token_hex(8)}"
        self._prompted = False
        prompt = f'echo "{self._prompt} $?"; PS1= PS2='
        self._at_prompt = False
        """At that of Python."""
        self._edited = False
        """Whether the prompt draws what is typed."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._received = ""
        """Since the last mark."""
        self._keys, line = pty.openpty()
        modes = termios.tcgetattr(line)
        modes[LOCAL_MODES] &= ~termios.ECHO
        termios.tcsetattr(line, termios.TCSANOW, modes)
        termios.tcsetwinsize(line, ROWS_AND_COLUMNS)
        histories = {name: str(directory / f".{name.lower()}") for name in ("HISTFILE", "PYTHON_HISTORY")}
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", "bash", "--norc", "--noediting", "-i"],
            cwd=directory,
            env={**os.environ, **ENVIRONMENT, **histories, "PROMPT_COMMAND": prompt},
            stdin=line,
            stdout=line,
            stderr=line,
        )
        os.close(line)

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
        os.close(self._keys)

    def _command(self, act: Act) -> str:
        if self._at_prompt:
            self._send("exit()")
        if not self._prompted:
            self._until_over(act, self._prompt)
        self._send(act.text)
        self._at_prompt = bool(STARTS_PROMPT.search(act.text))
        self._prompted = not self._at_prompt
        return self._until_marked(act) if self._at_prompt else self._until_over(act, self._prompt)

    def _type(self, act: Act) -> str:
        if not self._at_prompt:
            raise StumbleError(f"{act.where}: is typed at a prompt of Python, and none was started")
        if self._edited:
            self._paste(act)
            self._send("\n")
        else:
            self._send(f"{act.text}\n")
        seen = re.sub(r"^((>>>|\.\.\.) )+", "", self._until_marked(act), flags=re.MULTILINE)
        if FAILED.search(seen):
            raise StumbleError(f"{act.where}: fails:\n{seen}")
        return seen

    def _paste(self, act: Act) -> None:
        """Lines that are typed this prompt would indent by itself. Who types on before seeing what was pasted
        adds to it, in CPython 3.14."""
        self._until(act, BEGINS_EDITING)
        os.write(self._keys, f"\x1b[200~{act.text}\x1b[201~".encode())
        last_line = act.text.rpartition("\n")[2]
        self._until(act, re.compile(f"(?:{ESCAPE.pattern})*".join(map(re.escape, last_line))))

    def _until_marked(self, act: Act) -> str:
        """Have Python's prompt print a mark when the act is over."""
        mark = f"mark-{secrets.token_hex(8)}"
        self._send(f'print("{mark}", 0)')
        return self._until_over(act, mark)

    def _until_over(self, act: Act, mark: str) -> str:
        """What was seen before the mark, and the status behind it."""
        found = self._until(act, re.compile(rf"{mark} (\d+)\r*\n"))
        before, self._received = self._received[: found.start()], self._received[found.end() :]
        self._edited = bool(BEGINS_EDITING.search(before))
        if found[1] != "0":
            raise StumbleError(f"{act.where}: {act.text!r} ends with status {found[1]}:\n{as_read(before)}")
        return as_read(before)

    def _until(self, act: Act, awaited: re.Pattern[str]) -> re.Match[str]:
        """Read on until it is there."""
        deadline = time.monotonic() + self._silence
        while not (found := awaited.search(self._received)):
            ready, _, _ = select.select([self._keys], [], [], max(0.0, deadline - time.monotonic()))
            piece = self._read() if ready else b""
            self._received += self._decoder.decode(piece)
            if not piece:
                how = "ends the shell" if ready else f"shows nothing for {self._silence:.0f} seconds"
                seen = as_read(self._received)
                raise StumbleError(f"{act.where}: {act.text!r} {how}; before, it was:\n{seen}")
            deadline = time.monotonic() + self._silence
        return found

    def _read(self) -> bytes:
        try:
            return os.read(self._keys, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # nobody has the terminal any more
                raise
            return b""

    def _send(self, text: str) -> None:
        os.write(self._keys, f"{text}\n".encode())


def as_read(received: str) -> str:
    """What a person reads of it: without what a prompt draws while one types, without colours, lines in their
    last state."""
    text = ESCAPE.sub("", ASIDE.sub("", EDITING.sub("", received)))
    return re.sub(r"[^\n]*\r(?!\n)", "", re.sub(r"\r+\n", "\n", text))


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
