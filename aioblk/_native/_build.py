"""Builds aioblk._native._blkio, the cffi binding of libblkio (API mode: compiled against blkio.h).

setuptools finds ``ffi`` here (``cffi_modules``), and setup.py says where libblkio is.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffi = FFI()
ffi.cdef((HERE / "_cdefs.h").read_text())
ffi.set_source("aioblk._native._blkio", (HERE / "_cffi_src.c").read_text())
