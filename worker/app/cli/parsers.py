"""The parser of a command line, and how a command is added to it."""

import argparse
from typing import Any, NoReturn

MODEL = "a model id or alias of models.yaml, a reference, or a file or folder of this machine"
ENTRY = "a name that `cache ls` shows, or org/repo"


class Parser(argparse.ArgumentParser):
    """Refuses a line in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and end with 2."""
        self.exit(2, f"error: {message.removeprefix('argument ')}; see `{self.prog} --help`.\n")


class Help(argparse.HelpFormatter):
    """Names a value once, behind the last spelling of its option."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def add_command(commands: Any, name: str, function: str, text: str) -> Parser:
    """Add a command. Its function is imported when it is run: `--help` waits for nothing."""
    parser: Parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False, formatter_class=Help
    )
    parser.set_defaults(function=function)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no warnings")
    return parser


def add_group(commands: Any, name: str, text: str) -> Any:
    """Add a group of commands."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False, formatter_class=Help)
    parser.set_defaults(parser=parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Let a command print JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs; a failure too")
