"""`rsr <command>`: finds the command's file and runs it. Nothing here imports torch, so that help is there at once.

A new command is a file `rsr_trl/cli/<name>.py` and its line in `COMMANDS`. As TRL's scripts do, the file has
`make_parser(prog)`, which returns a [`~trl.TrlParser`] over dataclasses (see [`option_parser`]), and
`main(*dataclasses)`, which does the work and imports what it needs. A message for people is an `RSRError`.
"""

import logging
import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import rsr_trl


COMMANDS = {
    "demo": "run everything end to end, offline, on a small built-in student and data: start here",
    "score": "score every trajectory of a dataset with your student",
    "teachers": "rank the teachers of a scored dataset, with error bars; or score only as many trajectories as needed",
    "select": "choose the most suitable trajectories of a scored dataset",
    "sft": "fine-tune your student with TRL: on a selection, or selected and ordered while training",
    "pilot": "compare selection strategies in short trainings of your student, before the full training",
    "compare": "compare RSR with other scores of the same trajectories, and check for its known failure modes",
    "report": "write a self-contained HTML report: teachers, trajectories token by token, what selection changes",
    "show": "show one trajectory token by token: surprisal per token, RSR per sentence",
}

DESCRIPTION = """\
Choose the reasoning trajectories that suit your student, with the Rank-Surprisal Ratio (RSR).
A lower RSR suits the student better."""

EPILOG = """\
`rsr <command> --help` lists a command's options; `--config file.yaml` reads them from a file.
RSR_TRACEBACK=1 in the environment shows where an error came from."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line on `argv` (without the program's name; by default that of the process) and return its exit
    code: 0 done, 1 an error in one message, 2 wrong usage, and as a shell counts signals 130 interrupted, 141 when
    nobody reads the output any more (`rsr show ... | head`).
    """
    code = 0
    try:
        try:
            code = _main(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as stop:  # help, wrong usage, or rich: so it stops where a pipe is closed
            if isinstance(stop.__context__, BrokenPipeError):
                _forget_unread()
                return 141
            print(end="", flush=True)
            raise
        print(end="", flush=True)  # a short output is written now, and not when Python ends and can only complain
        return code
    except BrokenPipeError:
        if not _forget_unread():  # not of our output: of a process or a connection that has gone
            raise
        return 141
    except OSError as error:  # the rest of the output can't be written: the disk is full
        _forget_unread()
        if code == 0:  # else it is said already
            print(f"rsr: error: {error}", file=sys.stderr)
        return 1


def _main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="rsr", description=DESCRIPTION, epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"rsr-trl {rsr_trl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", dest="command")
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    # Only the first word is ours: the rest belongs to the command's own parser.
    if argv and argv[0] not in (*COMMANDS, "-h", "--help", "--version"):
        parser.error(_no_command(argv[0]))
    name = parser.parse_args(argv[:1]).command
    if name is None:
        parser.print_help()
        return 0
    from rsr_trl.rsr import RSRError  # it imports numpy

    try:
        return _run(name, argv[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # no error: `main` ends it
        raise
    except (RSRError, OSError) as error:  # anything else is a defect, and keeps its traceback
        if os.environ.get("RSR_TRACEBACK"):
            raise
        from rsr_trl.cli.tables import harmless

        print(harmless(f"rsr {name}: error: {error}"), file=sys.stderr)
        return 1


def _no_command(word: str) -> str:
    from rsr_trl.rsr import did_you_mean

    if word.startswith("-"):
        return f"name a command before its options: rsr <command> {word} ... Commands: {', '.join(COMMANDS)}."
    return f"there is no command {word!r}.{did_you_mean(word, COMMANDS)} Commands: {', '.join(COMMANDS)}."


def _run(name: str, argv: Sequence[str]) -> int:
    from rsr_trl.cli import tables
    from rsr_trl.cli.options import as_options, parse
    from rsr_trl.rsr import RSRError

    command = import_module(f"rsr_trl.cli.{name}")
    parser = command.make_parser(prog=f"rsr {name}")
    # Messages of the package are written for Python: here they name the options of this command.
    tables.in_options = partial(as_options, parser=parser)
    warnings = logging.StreamHandler()
    warnings.format = lambda record: tables.harmless(tables.in_options(record.getMessage()))
    logging.getLogger("rsr_trl").addHandler(warnings)
    scoring = logging.getLogger("rsr_trl.scoring")  # commands that tell its counts themselves make it quiet
    level = scoring.level
    try:
        return command.main(*parse(parser, argv)) or 0
    except RSRError as error:
        error.args = (tables.in_options(str(error)),)
        raise
    finally:
        scoring.setLevel(level)
        logging.getLogger("rsr_trl").removeHandler(warnings)


def _forget_unread() -> bool:
    """Leave nothing that Python would complain about again when it closes its streams. Returns whether there was."""
    unread = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            unread = True
    return unread
