# SPDX-License-Identifier: GPL-2.0-or-later
"""``dmsoft explain``."""

import click

from dmsoft.cli.options import json_option
from dmsoft.report.explanations import explanation, known
from dmsoft.report.output import emit, say


@click.command(short_help="Say at length what an error or alert CODE means.")
@click.argument("code", required=False)
@json_option
def explain(code: str | None, as_json: bool) -> None:
    """Say at length what an error or alert CODE means and what to do; without CODE, list them all."""
    if code is None:
        codes = known()
        if as_json:
            emit({"codes": [{"code": each, "summary": text.splitlines()[0]} for each, text in codes.items()]})
            return
        width = max(map(len, codes))
        for each, text in codes.items():
            say(f"{each:{width}}  {text.splitlines()[0]}", hang=width + 2)
        return
    text = explanation(code)
    if as_json:
        emit({"code": code, "text": text})
    else:
        for line in text.splitlines():
            say(line)
