"""Text of one request → what kind of statement it is, which format it asks for, where its data begins.

Not a parser: it only skips strings, comments and brackets, so that a keyword is not taken from inside them.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    rb"""
      (?P<skip>\s+ | --[^\n]* | \#[!\ ][^\n]* | /\*.*?\*/)
    | (?P<string>'(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<open>[(\[{])
    | (?P<close>[)\]}])
    | (?P<end>;)
    | (?P<other>.)
    """,
    re.DOTALL | re.VERBOSE,
)
_NOT_A_FORMAT = frozenset({b"FROM", b"AS", b"WHERE", b"IN", b"IS", b"AND", b"OR", b"LIKE", b"ASC", b"DESC", b"LIMIT"})
# After spaces, exactly one line break belongs to the statement; every byte after it is data (it may be binary).
_BEFORE_DATA = re.compile(rb"[ \t\f]*\r?\n?")


@dataclass(frozen=True)
class Statement:
    """verb: first keyword, upper case, "" for empty text. format: as written, None if none is asked for.

    head: for an INSERT with data, the statement without its FORMAT clause; else the whole text. data_start: where the
    data of such an INSERT begins (the text's length if there is none in it), None for every other statement.
    several: another statement follows the first.
    """

    verb: str
    format: str | None
    head: bytes
    data_start: int | None
    several: bool


def parse(text: bytes) -> Statement:
    """Look at the statement; never raises, an invalid one is for the engine to refuse."""
    verb = b""
    depth = 0
    format_name: bytes | None = None
    format_at = 0  # start of the keyword FORMAT
    expecting_format = False
    ended = several = has_source = False
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup if token.lastgroup != "tag" else "string"
        if kind == "skip":
            continue
        if ended:
            several = True
            break
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
        elif kind == "end":
            ended = True
        if kind != "word" or depth != 0:
            expecting_format = False
            continue
        word = token.group().upper()
        verb = verb or word
        if expecting_format and word not in _NOT_A_FORMAT:
            format_name = token.group()
            if verb == b"INSERT" and not has_source:
                data_start = _data_start(text, token.end())
                return Statement("INSERT", format_name.decode(), text[:format_at], data_start, several=False)
        elif verb == b"INSERT" and word in (b"SELECT", b"WITH", b"INFILE", b"WATCH"):
            has_source = True
        elif verb == b"INSERT" and word == b"VALUES" and not has_source:
            return Statement("INSERT", "Values", text[: token.start()], token.end(), several=False)
        expecting_format = word == b"FORMAT"
        if expecting_format:
            format_at = token.start()
    found = format_name.decode() if format_name is not None else None
    return Statement(verb.decode(), found, text, None, several)


def _data_start(text: bytes, end_of_format: int) -> int:
    match = _BEFORE_DATA.match(text, end_of_format)
    return match.end() if match is not None else end_of_format


def quote(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_identifier(name: str) -> str:
    """A name in backticks."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
