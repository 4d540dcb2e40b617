"""Write text cells of CSV files so that a spreadsheet takes none for a formula, and read them back.

A text that begins with =, +, -, @, a tab or a carriage return gets an apostrophe in front, as spreadsheets do it
themselves; so does a text that begins with apostrophes and then one of these, so that every text can be told from every
other. Numbers stay as they are.
"""

import re

FORMULA = re.compile(r"'*[=+\-@\t\r]")
ESCAPED = re.compile(r"'+[=+\-@\t\r]")
NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_cell(text: str) -> str:
    """Return a text as a CSV file should hold it."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def restore_cell(text: str) -> str:
    """Return the text that `escape_cell` was given."""
    return text[1:] if ESCAPED.match(text) else text
