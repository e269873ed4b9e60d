"""The commands that need the standard library only, in the form of those that do not: for tests of both."""

import argparse

import click


def as_click(parser: argparse.ArgumentParser) -> click.Command:
    """A command of Click with the words, arguments, options and help of *parser*; it does nothing."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if inner:
        found = {name: as_click(choice) for name, choice in inner[0].choices.items()}
        return click.Group(parser.prog.split()[-1], commands=found, help=parser.format_help())
    parameters: list[click.Parameter] = [
        click.Option([text for text in action.option_strings if text.startswith("--")])
        if action.option_strings
        else click.Argument([action.dest])
        for action in parser._actions
        if "--help" not in action.option_strings
    ]
    return click.Command(parser.prog.split()[-1], params=parameters, help=parser.format_help())
