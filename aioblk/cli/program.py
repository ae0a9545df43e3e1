"""The group of all commands. It imports the one that is called, and says in a line how it ended."""

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "INTERRUPTED", "program"]

COMMANDS: Mapping[str, str] = {
    "info": "What a device is.",
    "copy": "Copy a device or file to another one.",
    "compare": "Whether two devices read as the same.",
    "checksum": "A digest of what a device reads as.",
    "map": "Where a device has data, and where holes.",
}
"""Each command, which is the module of that name, with what it does."""

EXTRAS = {
    **dict.fromkeys(("click", "rich", "matplotlib"), "cli"),
    "prometheus_client": "metrics",
    "uvloop": "uvloop",
}
"""What commands import that a bare installation lacks, and the extra that brings it."""

FAILED, USAGE, INTERRUPTED = 1, 2, 128 + signal.SIGINT
"""Exit statuses, beside 0: a device or a file failed; the arguments are wrong; Ctrl-C."""


class Program(click.Group):
    """The commands by name. However one is run, by :meth:`main`, it ends with its exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"{__package__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            question = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"no command {name!r}; there are {', '.join(COMMANDS)}.{question}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # none of them is imported for it
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        return [
            *(
                CompletionItem(name, help=sentence)
                for name, sentence in COMMANDS.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # before click sees it, to which it is a failure
            ctx.exit(_reader_is_gone())
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        sys.exit(
            _ended(
                partial(
                    super().main,
                    args,
                    prog_name or "aioblk",
                    complete_var,
                    False,
                    windows_expand_args,
                    **extra,
                )
            )
        )


def _ended(run: Callable[[], object]) -> int:
    """The exit status of a command, after a line about what it raised. An int that it returns is one."""
    try:
        status = run()
    except click.ClickException as error:
        if not isinstance(error, click.UsageError):
            return _fail(error.format_message(), error.exit_code)
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("aioblk: interrupted", err=True)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(f"this needs {error.name}: pip install aioblk[{extra}]")
    except OSError as error:
        return _fail(str(error))
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = FAILED) -> int:
    click.echo(f"aioblk: {' '.join(message.split())}", err=True)
    return status


def _reader_is_gone() -> int:
    """As if SIGPIPE had ended the process, as with other programs; nothing more is written."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return 128 + signal.SIGPIPE


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version  # it takes longer than all else here

        click.echo(f"aioblk {version('aioblk')}")
        ctx.exit()


@click.group(
    "aioblk",
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has a --help of its own, with examples. "
    "Errors are a line on stderr and exit status 1; wrong arguments are 2, Ctrl-C is 130.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def program() -> None:
    """Block devices, from the command line."""
