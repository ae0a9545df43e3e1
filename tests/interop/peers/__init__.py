"""The tests that other projects have for NBD, run against this server: `./run interop`.

sources.py      fetches them, as Debian's source packages
stand_in.py     takes the place of qemu-nbd and of nbdkit, where those tests start a server
suites.py       runs them
expected.toml   what is known to fail, and why; nothing else may, and none of it may pass
"""
