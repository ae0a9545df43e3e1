"""The C core stays as rooms.h draws it: calls go down, and what may run Python code is marked.

All of it is read from the text, by what the sources keep to: definitions begin at the left margin, and the
parentheses of a call follow its name.

What the text cannot decide is decided for the worse. Dropping an object may run Python code, whatever the
object; so may all of CPython that is not named below as harmless, and a call through a pointer to a function.
What cannot be decided at all is whether what is marked is called as the rule beside the mark asks, with no
part, item or place in a list held across the call: that is for who reads, and for the campaigns.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import aioblk

SOURCES = Path(aioblk.__file__).parent / "_native" / "src"
MARK = "RUNS_PYTHON"

HARMLESS_IN_CPYTHON = frozenset(
    """
    Py_INCREF Py_NewRef Py_XNewRef Py_TYPE Py_SIZE Py_IS_TYPE Py_SET_TYPE Py_VISIT Py_UNUSED Py_UNREACHABLE
    PyObject_TypeCheck PyObject_CheckBuffer PyObject_Init PyObject_GC_Track PyObject_GC_UnTrack
    PyObject_GC_IsTracked PyObject_GC_IsFinalized PyObject_GC_Del
    PyTuple_CheckExact PyTuple_GET_ITEM PyTuple_GET_SIZE PyList_CheckExact PyList_GET_ITEM PyList_GET_SIZE
    PyList_SET_ITEM PyBytes_CheckExact PyBytes_AS_STRING PyBytes_GET_SIZE PyBytes_FromStringAndSize
    PyLong_CheckExact PyLong_FromLong PyLong_FromLongLong PyLong_FromSize_t PyLong_FromSsize_t
    PyLong_FromUnsignedLongLong PyLong_FromVoidPtr PyBool_FromLong PyUnicode_GET_LENGTH
    PyCFunction_CheckExact PyCFunction_GET_SELF PyCallable_Check PySet_Check PySlice_Check
    PyMemoryView_Check PyMemoryView_GET_BASE PyExceptionInstance_Check PyExceptionClass_Check
    PyErr_Occurred PyErr_Fetch PyErr_ExceptionMatches PyException_GetTraceback
    PyMem_Malloc PyMem_Calloc PyMem_Realloc PyMem_Free
    PyThread_get_thread_ident PyThreadState_Get PyInterpreterState_Get PyInterpreterState_Main
    PyModuleDef_Init PyModuleDef_HEAD_INIT PyVarObject_HEAD_INIT PyDoc_STRVAR
    """.split()  # noqa: SIM905 - a list of them would be as long as the file
)
"""They call nothing, drop nothing, and take no memory for which the collector would run."""

HARMLESS_BESIDE = frozenset(
    """
    qsort htole16 htole32 le16toh le32toh le64toh volatile
    calloc free memcpy memmove memset memcmp strlen strcmp strerror read preadv2 write fstat mmap
    clock_gettime nanosleep pthread_atfork assert ENSURE offsetof sizeof if for while switch return defined
    PUBLISH OBSERVE LOCK UNLOCK CRITICAL_SECTION END_CRITICAL_SECTION
    COUNT SHARED_ADD SHARED_OR SHARED_EXCHANGE SHARED_STORE SHARED_LOAD FAST
    """.split()  # noqa: SIM905
)
HARMLESS_PREFIXES = ("blkioq_", "__atomic_", "__builtin_", "__attribute__")
RUNS_ANYTHING = frozenset({"CLEAR_WEAK_REFERENCES"})
"""Macros of our own."""
LETS_OTHERS_RUN = re.compile(r"\bPy_(BEGIN_ALLOW_THREADS|TRASHCAN_BEGIN)\b|->\s*\w+\(|\)\s*\(\s*\w+->")
"""Where other threads get the GIL, or a slot of a structure is called."""

APART = {"allocator.c": "allocator.h", "virtio_blk.c": "virtio_blk.h", "virtqueue.c": "virtqueue.h"}
"""Rooms that know nothing of the others, or of those below, with a header of their own."""
DECLARE = ("core.h", "rooms.h", *APART.values())

HEADING = re.compile(r"-{4} (\w+\.c): ")
NAME = re.compile(r"(?<![.>\w])[A-Za-z_]\w*")
LOCAL = re.compile(r"(?:\b(?!return\b)\w+|\*) \**(\w+)(?: =|;|,|\[)")
DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+\w+(?:\([^)]*\))?((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
EXTERN = re.compile(r"^extern [^;()]*;", re.MULTILINE)
PROTOTYPE = re.compile(
    rf"^(?P<mark>{MARK} )?(?!extern|typedef|#|static)[\w ]+[ *](?P<name>\w+)\([^;{{]*\);", re.MULTILINE
)


@dataclass(frozen=True)
class Function:
    room: str
    name: str
    head: str
    body: str

    @property
    def own(self) -> bool:
        return "static" in self.head.split()

    @property
    def key(self) -> tuple[str, str]:
        return self.room, self.name


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _code(text: str) -> str:
    """The text without comments, strings and lines of the preprocessor."""
    text = re.sub(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', _blank, text, flags=re.DOTALL)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", _blank, text, flags=re.MULTILINE)


def _functions(room: str, code: str) -> list[Function]:
    """A definition begins at the left margin and ends with a brace there, or is one line."""
    found = re.finditer(
        r"^(?P<head>[A-Za-z_][^;={}]*?\b(?!__attribute__)(?P<name>\w+)\((?P<parameters>[^;{}]*)\))\s*"
        r"(?P<body>\{(?:[^\n]*\}$|.*?^\}))",
        code,
        flags=re.MULTILINE | re.DOTALL,
    )
    return [Function(room, each["name"], each["head"], each["body"]) for each in found]


class Core:
    """The sources, from their text by file name."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.code = {name: _code(text) for name, text in texts.items()}
        self.functions = {
            each.key: each for room, code in self.code.items() for each in _functions(room, code)
        }
        self.rooms, self.listed, self.marked = self._read_rooms(texts["rooms.h"])
        for room, header in APART.items():
            self.listed |= {each["name"]: room for each in PROTOTYPE.finditer(self.code.get(header, ""))}
        self.public = {each.name: each for each in self.functions.values() if not each.own}
        headers = {each.name: each for each in self.functions.values() if each.room.endswith(".h")}
        self.public |= headers
        self.data = self._read_data(texts["rooms.h"])
        self.macros = {room: " ".join(DEFINE.findall(text)) for room, text in texts.items()}
        self.tables = {room: self._without_functions(room) for room in self.code}
        """What is outside of all functions: types, and tables of methods."""

    def _without_functions(self, room: str) -> str:
        code = self.code[room]
        for each in self.functions.values():
            if each.room == room:
                code = code.replace(each.head, "").replace(each.body, "")
        return code

    @classmethod
    def _sections(cls, text: str) -> Iterator[tuple[str, str]]:
        headings = list(HEADING.finditer(text))
        for heading, following in zip(headings, [*headings[1:], None], strict=True):
            # A heading stands within a comment, whose rest is no prototype.
            yield (
                heading[1],
                _code("/*" + text[heading.end() : following.start() if following else len(text)]),
            )

    @classmethod
    def _read_data(cls, text: str) -> dict[str, str]:
        return {
            name: room
            for room, section in cls._sections(text)
            for declaration in EXTERN.findall(section)
            for name in re.findall(r"(\w+)(?:\[\w*\])?(?=[,;])", declaration)
        }

    @classmethod
    def _read_rooms(cls, text: str) -> tuple[list[str], dict[str, str], set[str]]:
        rooms: list[str] = []
        listed: dict[str, str] = {}
        marked: set[str] = set()
        for room, section in cls._sections(text):
            rooms.append(room)
            for prototype in PROTOTYPE.finditer(section):
                listed[prototype["name"]] = room
                if prototype["mark"]:
                    marked.add(prototype["name"])
        return rooms, listed, marked

    @cached_property
    def sources(self) -> list[str]:
        return sorted(name for name in self.code if name.endswith(".c"))

    def _known(self, room: str, name: str) -> Function | None:
        return self.functions.get((room, name)) or self.public.get(name)

    @cached_property
    def arrows(self) -> dict[tuple[str, str], set[tuple[str, str]]]:
        """For each function, those that it calls, or hands on to be called."""
        arrows = {}
        for key, function in self.functions.items():
            named, local = set(NAME.findall(function.body)), set(LOCAL.findall(function.body))
            called = set(re.findall(r"\b(\w+)\(", function.body))
            known = (self._known(function.room, name) for name in named - (local - called) - {function.name})
            arrows[key] = {each.key for each in known if each}
        return arrows

    @cached_property
    def run_python(self) -> set[tuple[str, str]]:
        """Which may, by themselves or by what they call."""
        runs = {key for key, each in self.functions.items() if self._runs_by_itself(each)}
        while more := {key for key, called in self.arrows.items() if key not in runs and called & runs}:
            runs |= more
        return runs

    def _runs_by_itself(self, function: Function) -> bool:
        return bool(LETS_OTHERS_RUN.search(function.body)) or any(
            name.startswith("Py") or name in RUNS_ANYTHING or f"(*{name})" in function.head
            for name in self._calls_to_others(function)
        )

    def _calls_to_others(self, function: Function) -> set[str]:
        """What it calls that is not ours, nor harmless."""
        called = set(re.findall(r"(?<![.>\w])([A-Za-z_]\w*)\(", function.body))
        return {
            name
            for name in called - HARMLESS_IN_CPYTHON - HARMLESS_BESIDE
            if not self._known(function.room, name) and not name.startswith(HARMLESS_PREFIXES)
        }

    def unknown(self, function: Function) -> set[str]:
        return {
            name
            for name in self._calls_to_others(function)
            if not name.startswith("Py") and name not in RUNS_ANYTHING and f"(*{name})" not in function.head
        }

    def upward(self) -> list[str]:
        floor = {room: number for number, room in enumerate(self.rooms)}
        arrows = [
            (room, target, f"{name}() calls {callee}()")
            for (room, name), called in self.arrows.items()
            for target, callee in called
        ]
        places = self.listed | self.data
        for room, code in self.code.items():
            names = set(NAME.findall(self.tables[room] + self.macros[room])) & places.keys()
            names |= set(NAME.findall(code)) & self.data.keys()
            arrows += [(room, places[name], name) for name in names if room not in DECLARE]
        return [
            f"{room} to {target}: {what}"
            for room, target, what in arrows
            if target not in (room, "core.h", "threads.h") and not floor.get(room, len(floor)) < floor[target]
        ]

    def wrongly_listed(self) -> list[str]:
        missing = [
            f"{each.room}: {each.name}() is not listed"
            for each in self.public.values()
            if each.room.endswith(".c") and each.name not in self.listed and each.name != "PyInit__core"
        ]
        return missing + [
            f"{name}() is listed under {room}, and is not there"
            for name, room in self.listed.items()
            if (room, name) not in self.functions or self.functions[room, name].own
        ]

    def wrongly_marked(self) -> list[str]:
        runs = {name for name, room in self.listed.items() if (room, name) in self.run_python}
        return [f"{name}() may run Python code, and is not marked" for name in sorted(runs - self.marked)] + [
            f"{name}() is marked, and runs no Python code" for name in sorted(self.marked - runs)
        ]


@pytest.fixture(scope="module")
def core() -> Core:
    return Core({path.name: path.read_text() for path in sorted(SOURCES.glob("*.[ch]"))})


def test_every_room_is_listed_once(core: Core) -> None:
    assert sorted(core.rooms) == core.sources
    assert not {room for room, code in core.tables.items() if re.search(r"\)\s*\{", code)}, (
        "one was not found"
    )


def test_what_is_listed_under_a_room_is_there_and_all_that_others_call_is_listed(core: Core) -> None:
    assert not core.wrongly_listed()


def test_no_source_declares_what_is_elsewhere(core: Core) -> None:
    assert not {room: found for room in core.sources if (found := PROTOTYPE.findall(core.tables[room]))}


def test_calls_go_down(core: Core) -> None:
    """So there is no circle, and no header calls a source, as none has a floor."""
    assert not core.upward()
    assert not [key for key in core.functions if key[0] == "rooms.h"]


def test_what_may_run_python_code_is_marked(core: Core) -> None:
    assert not core.wrongly_marked()


def test_of_all_that_is_called_it_is_known_what_it_does(core: Core) -> None:
    assert not {key: unknown for key, each in core.functions.items() if (unknown := core.unknown(each))}


@pytest.mark.parametrize("room", ["lists.c", "bounce.c"])
def test_some_rooms_run_no_python_code(core: Core, room: str) -> None:
    assert not [key for key in core.run_python if key[0] == room]


def test_the_chains_of_a_queue_are_changed_in_one_room(core: Core) -> None:
    changes = re.compile(r"->(in_flight|previous|following|dropped|(backlog|held|ready)_(head|tail)) =[^=]")
    assert {key[0] for key, each in core.functions.items() if changes.search(each.body)} == {"lists.c"}


def test_time_is_asked_in_one_room(core: Core) -> None:
    asks = re.compile(r"\b(clock_gettime|clock_nanosleep|nanosleep|gettimeofday|time|usleep|sleep)\(")
    assert {key[0] for key, each in core.functions.items() if asks.search(each.body)} == {"clock.c"}
    asking = {key for key, each in core.functions.items() if "clock_gettime(" in each.body}
    assert len(asking) == 1


@pytest.mark.parametrize("room", APART)
def test_some_rooms_know_none_of_the_others(room: str) -> None:
    assert re.findall(r'#include "(.*)"', (SOURCES / room).read_text()) == [APART[room]]
    assert "Py" not in _code((SOURCES / room).read_text())


# --- what is found, where there is something ----------------------------------------------------------------

ROOMS = """
/* ---- upper.c: calls ---- */
RUNS_PYTHON void above(void);

/*
 * ---- lower.c: is called ----
 *
 * void not_a_prototype(void);
 */
int below(int number);
RUNS_PYTHON void drop(PyObject *object);
"""
UPPER = "void above(void)\n{\n    below(1); /* drop() */\n    drop(NULL);\n}\n"
LOWER = (
    "int below(int number) { return number; }\n\nvoid drop(PyObject *object)\n{\n    Py_XDECREF(object);\n}\n"
)


def _house(rooms: str = ROOMS, upper: str = UPPER, lower: str = LOWER) -> Core:
    return Core({"rooms.h": rooms, "upper.c": upper, "lower.c": lower})


def test_a_house_in_order_is_found_in_order() -> None:
    core = _house()
    assert core.rooms == ["upper.c", "lower.c"]
    assert not core.upward()
    assert not core.wrongly_listed()
    assert not core.wrongly_marked()


def test_a_definition_that_is_not_found_is_noticed() -> None:
    core = _house(lower=LOWER.replace("int below(", "int\nbelow("))
    assert core.functions["lower.c", "below"]
    core = _house(lower=LOWER.replace("int below", "  int below"))
    assert re.search(r"\)\s*\{", core.tables["lower.c"])


@pytest.mark.parametrize(
    "code", ["static Method table[] = {above};", "#define AGAIN above()", "static int *place = &data;"]
)
def test_what_points_upwards_beside_functions_is_found(code: str) -> None:
    rooms = ROOMS.replace("void above(void);", "void above(void);\nextern int data, *more;")
    assert not _house(rooms=rooms).upward()
    assert _house(rooms=rooms, lower=f"{LOWER}\n{code}\n").upward()


@pytest.mark.parametrize(
    "call", ["above();", "call(above);", "void (*later)(void) = above;", "return above;"]
)
def test_a_call_upwards_is_found(call: str) -> None:
    assert _house(lower=f"{LOWER}\nstatic void back(void)\n{{\n    {call}\n}}\n").upward()


def test_a_function_in_a_wrong_place_is_found() -> None:
    wrong = ROOMS.replace("int below", "int elsewhere(void);\nint below")
    assert _house(rooms=wrong).wrongly_listed()
    assert _house(lower=LOWER + "\nint unlisted(void) { return 1; }\n").wrongly_listed()
    assert _house(lower=LOWER.replace("int below", "static int below")).wrongly_listed()


def test_a_missing_and_a_needless_mark_are_found() -> None:
    assert _house(rooms=ROOMS.replace(f"{MARK} void above", "void above")).wrongly_marked()
    assert _house(rooms=ROOMS.replace("int below", f"{MARK} int below")).wrongly_marked()


@pytest.mark.parametrize(
    "code",
    ["PyObject_CallNoArgs(f);", "self->slot(1);", "Py_BEGIN_ALLOW_THREADS", "Py_CLEAR(self->object);"],
)
def test_what_may_run_python_code_is_found(code: str) -> None:
    lower = LOWER.replace("return number;", f"{code} return number;")
    assert _house(lower=lower).wrongly_marked() == ["below() may run Python code, and is not marked"]


def test_what_nobody_has_classified_is_found() -> None:
    core = _house(lower=LOWER.replace("return number;", "return novel(number);"))
    assert core.unknown(core.functions["lower.c", "below"]) == {"novel"}
