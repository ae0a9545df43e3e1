"""What the pages have a newcomer type is found in order; where they do not lead on, it says what was seen."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from release.newcomer import WAY, Act, StumbleError, Terminal, acts_of, as_read, section

from ..support.scripts import ROOT

PAGE = """\
# A page

Begin:

```console
$ echo one two              # says it
one two
$ python -m asyncio
>>> x = 1
```

Then:

```python
async def f():

    print(x)                # ... or so
```

Leave, and put this into `program.py`:

```python
import asyncio
```

<!-- not run: a disk -->
```console
$ cat /dev/sdb
```

## Below

```text
nothing to do
```

## Last

```console
$ cat program.py \\
      | sort
```
"""


def _seen(acts: Iterator[Act]) -> list[tuple[str, str, str]]:
    return [(act.where, act.kind, act.text) for act in acts]


def test_a_page_is_commands_what_is_typed_and_files_in_order() -> None:
    acts = list(acts_of("page", PAGE))
    assert _seen(iter(acts)) == [
        ("page:6", "command", "echo one two              # says it"),
        ("page:8", "command", "python -m asyncio"),
        ("page:9", "typed", "x = 1"),
        ("page:15", "typed", "async def f():\n\n    print(x)                # ... or so"),
        ("page:23", "file", "import asyncio\n"),
        ("page:40", "command", "cat program.py \\\n      | sort"),
    ]
    assert [act.shows for act in acts] == [["one two"], [], [], ["... or so"], [], []]
    assert acts[4].into == "program.py"


def test_a_part_of_a_page_keeps_its_line_numbers() -> None:
    assert _seen(acts_of("page", section(PAGE, "## Last")))[0][0] == "page:40"
    assert _seen(acts_of("page", section(PAGE, "## Below"))) == []
    with pytest.raises(StumbleError, match="there is no '## First'"):
        section(PAGE, "## First")


def test_output_without_a_command_is_refused() -> None:
    with pytest.raises(StumbleError, match="page:2: output of no command: hello"):
        list(acts_of("page", "```console\nhello\n```\n"))


def test_the_pages_lead_from_a_wheel_to_a_service_that_is_used() -> None:
    texts = [section((ROOT / page).read_text(), heading) for page, heading in WAY]
    install, tutorial = (
        list(acts_of(page, text)) for (page, _), text in zip(WAY, texts, strict=True)
    )  # fmt: skip
    assert any("pip install" in act.text and "dist/aioblk-" in act.text for act in install)
    assert [act.into for act in tutorial if act.kind == "file"] == ["service.py"]
    client = next(act for act in tutorial if "UNIX-CONNECT" in act.text)
    assert client.shows == ["OK 0", "OK 3", "ell"]
    samples = texts[1].count("```python\n")
    assert (
        len([act for act in tutorial if act.kind != "command" and "import serve" not in act.text]) == samples
    )
    assert "MemoryDevice" in tutorial[-1].text


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, silence=30)
    yield terminal
    terminal.close()


def _command(text: str, *shows: str) -> Act:
    return Act("page:1", "command", text, shows=list(shows))


def _typed(text: str, *shows: str) -> Act:
    return Act("page:1", "typed", text, shows=list(shows))


def test_what_is_typed_is_read_by_the_shell_and_by_python(terminal: Terminal, tmp_path: Path) -> None:
    terminal.do(_command("here=yes"))
    assert terminal.do(_command("echo $here", "yes")) == "yes\n"
    terminal.do(Act("page:1", "file", "x = 2\n", "program.py"))
    terminal.do(_command(f'python() {{ {sys.executable} "$@"; }}'))
    terminal.do(_command("python -m asyncio"))
    terminal.do(_typed("import asyncio\nfrom program import x"))
    sample = "y = x + 1\n\nasync with asyncio.timeout(30):\n    print(y, 'is it')"
    assert terminal.do(_typed(sample, "3 ... it")) == "3 is it\n"
    assert terminal.do(_typed("import sys; sys.stdin.isatty()", "True")) == "True\n"
    with pytest.raises(StumbleError, match="page:1: is to show '2 is', and shows ''"):
        terminal.do(_typed("x = 3      # 2 is", "2 is"))
    with pytest.raises(StumbleError, match=r"page:1: fails:\n(.|\n)*NameError: name 'z'"):
        terminal.do(_typed("print(z)"))
    with pytest.raises(StumbleError, match=r"page:1: fails:\n(.|\n)*(Syntax|Indentation)Error"):
        terminal.do(_typed("if x:\nprint(x)"))
    assert terminal.do(_command("cat program.py", "x = 2")) == "x = 2\n"


def test_what_a_program_does_with_its_input_does_not_matter(terminal: Terminal) -> None:
    forget = "import termios; termios.tcflush(0, termios.TCIFLUSH)"
    assert terminal.do(_command(f"{sys.executable} -c '{forget}'; echo so", "so")) == "so\n"


def test_what_runs_behind_the_shell_has_a_number_there(terminal: Terminal) -> None:
    assert re.fullmatch(r"\[1\] \d+\n", terminal.do(_command("sleep 60 &")))
    assert terminal.do(_command("kill %1; wait %1 || echo gone", "gone"))


def test_of_what_programs_draw_the_last_state_is_read() -> None:
    assert (
        as_read("\x1b[1;32m10 %\x1b[0m\r100 %\r\nd\x1b7\x1b[9;9f...\x1b8\x1b(Bone\r\r\n") == "100 %\ndone\n"
    )
    typed = "\x1b[?2004h>>> print(1)\x1b[3D\r\n\x1b[?2004l"
    assert as_read(f"{typed}1\r\n{typed}\x1b[?2004h>>> p") == "1\n"


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (_command("(echo so; exit 3)"), r"page:1: '\(echo so; exit 3\)' ends with status 3:\nso"),
        (_command("echo one", "two"), "page:1: is to show 'two', and shows 'one\\\\n'"),
        (_command("exit"), "page:1: 'exit' ends the shell"),
        (_typed("x"), "page:1: is typed at a prompt of Python, and none was started"),
    ],
    ids=["status", "output", "end", "prompt"],
)
def test_what_does_not_lead_on_is_told_with_its_place(terminal: Terminal, act: Act, why: str) -> None:
    with pytest.raises(StumbleError, match=why):
        terminal.do(act)


def test_what_shows_nothing_for_long_is_given_up(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, silence=0.01)
    try:
        with pytest.raises(StumbleError, match="'read never' shows nothing for 0 seconds"):
            terminal.do(_command("read never"))
    finally:
        terminal.close()
