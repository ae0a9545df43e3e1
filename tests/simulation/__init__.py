"""Devices that are simulated: simblkio/ takes libblkio's place in a process, and library.py speaks to it.

The tests of each module run in a process of their own that has it preloaded; conftest.py sees to that.
"""
