"""Builds aioblk._native._blkio, the cffi binding of libblkio (API mode: compiled against blkio.h).

setuptools finds ``ffi`` here (``cffi_modules``). pkg-config says where libblkio is. 1.4 is the first version
that has all of the calls; those for zones were the last to come.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffi = FFI()
ffi.cdef((HERE / "_cdefs.h").read_text())
ffi.set_source_pkgconfig("aioblk._native._blkio", ["blkio >= 1.4"], (HERE / "_cffi_src.c").read_text())
