"""What commands print for programs to read."""

import click

__all__ = ["print_json"]


def print_json(found: object) -> None:
    import json  # few runs want it, and every run would wait for it

    click.echo(json.dumps(found, indent=2))
