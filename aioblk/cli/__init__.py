"""The programs that people run, ``aioblk COMMAND``: a thin face of what is below, with click.

A command is a module here with a :class:`click.Command` called ``command``, and a line in
``aioblk.cli.program.COMMANDS``. What it needs beside click, it imports when it runs.
"""
