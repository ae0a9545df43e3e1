"""The group of all commands. It imports the one that is called, and says in a line how it ended."""

import importlib
import io
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .._version import VERSION
from ..errors import OptionError
from .output import in_words, lose_output, say
from .running import FAILED, fail

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "INTERRUPTED", "program"]

COMMANDS: Mapping[str, str] = {
    "info": "What this machine can run; what a device is.",
    "bench": "How fast a device is, and how long requests take.",
    "copy": "Copy a device or file to another one.",
    "compare": "Whether two devices read as the same.",
    "checksum": "A digest of what a device reads as.",
    "map": "Where a device has data, and where holes.",
    "serve": "Serve devices over NBD.",
}
"""Each command, which is the module of that name, with what it does."""

EXTRAS = {
    **dict.fromkeys(("click", "rich", "matplotlib"), "cli"),
    "prometheus_client": "metrics",
    "uvloop": "uvloop",
}
"""What commands import that a bare installation lacks, and the extra that brings it."""

USAGE, INTERRUPTED = 2, 128 + signal.SIGINT
"""Exit statuses, beside 0 and those of :func:`fail`: the arguments are wrong; Ctrl-C."""


class Program(click.Group):
    """The commands by name. However one is run, by :meth:`main`, it ends with its exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"{__package__}.{cmd_name}").command
        if (
            signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        ):  # as ``aioblk.__main__`` has it while it imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
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

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError:  # of the help, or the version
            raise click.exceptions.Exit(_reader_is_gone()) from None

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
            return fail(error.format_message(), error.exit_code)
        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue().rstrip())
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        say("aioblk: interrupted")
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return fail(f"this needs {error.name}: pip install aioblk[{extra}]")
    except OptionError as error:  # of a device, unless it is of the options themselves, or of an address
        return fail(in_words(error), USAGE if error.operation in (None, "address") else FAILED)
    except OSError as error:
        return fail(in_words(error))
    return status if isinstance(status, int) else 0


def _reader_is_gone() -> int:
    """As if SIGPIPE had ended the process, as with other programs; nothing more is written."""
    lose_output()
    return 128 + signal.SIGPIPE


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"aioblk {VERSION}")
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
