"""Random searches for crashes and hangs: what hostile code does from within, and what anybody may call when.

`search` runs one seed after the other, each in a process of its own; `world` is what such a process has, and
watches for; `native_reentrancy` and `house_api` are what it does; `hostile` is what both pass to aioblk.
"""
