"""The tests of nbd-server."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ...support.nbd_server import NbdServer
from .place import FAILED, PASSED, Outcome, place
from .sources import BUILD, fetch

HERE = "tests/run"
TESTER: dict[str, tuple[str, ...]] = {
    "cfg1": (),
    "cfgsize": ("-o",),
    "write": ("-w",),
    "flush": ("-w", "-f"),
    "rowrite": ("-w", "-F"),
    "handshake": ("-h",),
    "list": ("-l",),
    "integrity": ("-i", "-t", f"{HERE}/integrity-test.tr"),
    "integrityhuge": ("-i", "-t", f"{HERE}/integrityhuge-test.tr"),
    "unix": ("-u",),
}
SIZES = {f"SIZEOF_UNSIGNED_{kind}_INT": size for kind, size in (("SHORT", 2), ("LONG", 8), ("LONG_LONG", 8))}


def nbd_tester() -> Iterator[tuple[str, Outcome]]:
    """nbd-tester-client, as nbd-server's own tests use it."""
    files = fetch("nbd")
    tester = _compile_tester(files)
    with place() as here:
        for name, options in TESTER.items():
            image = here.directory / "image"
            image.unlink(missing_ok=True)
            image.touch()
            os.truncate(image, 50 << 20)
            with NbdServer(
                *("io_uring", f"path={image}", f"read-only={'on' if name == 'rowrite' else 'off'}"),
                *(() if name == "unix" else ("--port", "0")),
                name="export1",
            ) as server:
                port = str(urlsplit(server.uri).port)
                where = [str(server.socket)] if name == "unix" else ["127.0.0.1", port]
                done = here.run(tester, "-N", "export1", *options, *where, cwd=files)
            told = re.sub(r"[^\n]*\r", "", done.stdout + done.stderr)
            yield name, Outcome(FAILED, told) if done.returncode else Outcome(PASSED)


def _compile_tester(files: Path) -> Path:
    """By hand: its configure script asks for much that the client does not need."""
    tester, configuration = BUILD / "nbd-tester-client", BUILD / "config.h"
    if not tester.exists():
        sizes = "".join(
            f"#define {name} {size}\n" for name, size in {**SIZES, "SIZEOF_UNSIGNED_INT": 4}.items()
        )
        configuration.write_text(f'#define PACKAGE_VERSION "0"\n#define HAVE_GNUTLS 0\n{sizes}')
        asked = ["pkg-config", "--cflags", "--libs", "glib-2.0"]
        flags = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        sources = [str(files / HERE / "nbd-tester-client.c"), str(files / "cliserv.c")]
        options = ["-w", "-D_GNU_SOURCE", "-DHAVE_CONFIG_H", f"-I{BUILD}", f"-I{files}"]
        subprocess.run(
            ["cc", *options, "-o", str(tester), *sources, *flags], check=True, stderr=subprocess.DEVNULL
        )
    return tester
