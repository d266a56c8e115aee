"""Read a recipe's command as bash would, and quote a value for the place where it stands.

A command is a list of units: characters, and `Slot`s where a placeholder stands. `read` splits it into tokens and says
in which place each slot stands; `fill` puts values in, each quoted for its place; `commands` groups the tokens of a
finished text into simple commands. Grammar: the Bash Reference Manual, "Quoting" and "Shell Expansions". Pure; no
input makes it run anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from .spark_launch_args import quote

# Characters that no shell reads anything into, wherever they stand unquoted after the first word.
PLAIN = re.compile(r"[A-Za-z0-9_./:=,+@%-]+")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
QUOTABLE = ("bare", "single", "double")

_OPERATORS = (
    "&>>", "<<<", "<<-", ";;&", "&&", "||", ";;", ";&", "|&", "<<", ">>", "<&", ">&", "<>", ">|", "&>",
    ";", "&", "|", "<", ">", "(", ")",
)  # fmt: skip
_REDIRECTIONS = {"<", ">", ">>", "<<", "<<-", "<<<", "<&", ">&", "<>", ">|", "&>", "&>>"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_METACHARACTERS = set(" \t\n;&|<>()")
_RESERVED = {"if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"}
_CLOSING = {"fi", "done", "esac", "}"}
# Commands that read their words a second time as shell text or arithmetic.
_REREADERS = {
    "eval", "bash", "sh", "dash", "ksh", "zsh", "source", ".", "xargs", "trap", "let", "declare", "typeset", "local",
    "alias", "ssh", "su", "sudo", "env", "nohup", "python", "python3", "perl", "awk", "sed", "docker",
}  # fmt: skip


class ShellError(ValueError):
    """The text is not shell that this reader can follow; the message is a clause without a subject."""


class Slot(NamedTuple):
    """Where a placeholder stands in a command."""

    name: str


@dataclass
class Token:
    """A word, an operator, a newline or a comment: units[start:end]. A word's text is its value once it is literal."""

    kind: str
    start: int
    end: int
    text: str = ""
    literal: bool = True
    assignment: bool = False


@dataclass
class Command:
    """A simple command: its words without leading assignments, `exec` and reserved words; `end` is the last unit."""

    words: list[Token] = field(default_factory=list)
    bare: bool = True  # nothing but words: no assignment, redirection, `exec` or reserved word
    start: int = 0
    end: int = 0

    @property
    def name(self) -> str | None:
        return self.words[0].text if self.words and self.words[0].literal else None


class Place(NamedTuple):
    """One slot of a command: its unit index, and `bare`, `single`, `double` or the name of a place that takes none."""

    index: int
    slot: Slot
    where: str


class Reader:
    """Splits units into `tokens` and `places`; raises ShellError when a quote or bracket never closes."""

    def __init__(self, units):
        self.units = list(units)
        self.i = 0
        self.tokens: list[Token] = []
        self.places: list[Place] = []
        self.rereads: str | None = None  # a construct that reads a variable's value again
        self._heredocs: list[tuple[str, bool]] = []
        while self.i < len(self.units):
            self._token()

    def _at(self, offset=0):
        index = self.i + offset
        return self.units[index] if index < len(self.units) else ""

    def _starts(self, text):
        return all(self._at(k) == c for k, c in enumerate(text))

    def _slot(self, where):
        self.places.append(Place(self.i, self.units[self.i], where))
        self.i += 1

    def _token(self):
        c = self._at()
        if c in (" ", "\t"):
            self.i += 1
        elif self._starts("\\\n"):
            self.i += 2
        elif c == "\n":
            self.tokens.append(Token("newline", self.i, self.i + 1, "\n"))
            self.i += 1
            for delimiter, tabs in self._heredocs:
                self._heredoc(delimiter, tabs)
            self._heredocs = []
        elif c == "#":
            start = self.i
            while self._at() not in ("\n", ""):
                self._plain("a comment")
            self.tokens.append(Token("comment", start, self.i))
        elif not isinstance(c, Slot) and c in ";&|<>()":
            self._operator()
        else:
            self._word()

    def _plain(self, where):
        if isinstance(self._at(), Slot):
            self._slot(where)
        else:
            self.i += 1

    def _operator(self):
        start = self.i
        if self._starts("(("):
            self.rereads = "(( … ))"
            self.i += 2
            self._until(")", "arithmetic", depth=2, opening="(")
            self.tokens.append(Token("op", start, self.i, "((", literal=False))
            return
        if self._starts("<(") or self._starts(">("):
            self._word()
            return
        operator = next(o for o in _OPERATORS if self._starts(o))
        self.i += len(operator)
        self.tokens.append(Token("op", start, self.i, operator))
        if operator in ("<<", "<<-"):
            while self._at() in (" ", "\t"):
                self.i += 1
            before = len(self.places)
            self._word()
            if len(self.places) > before:
                raise ShellError("a placeholder names the end of a here-document")
            raw = "".join(self.units[self.tokens[-1].start : self.tokens[-1].end])
            self._heredocs.append((re.sub(r"[\\'\"]", "", raw), operator == "<<-"))

    def _heredoc(self, delimiter, tabs):
        while self.i < len(self.units):
            line = []
            while self._at() not in ("\n", ""):
                line.append("\0" if isinstance(self._at(), Slot) else self._at())
                self._plain("a here-document")
            self.i += 1
            text = "".join(line)
            if (text.lstrip("\t") if tabs else text) == delimiter:
                return

    def _word(self):
        start, value, literal, bracket, slots = self.i, [], True, False, False
        while self.i < len(self.units):
            c = self._at()
            if isinstance(c, Slot):
                slots = True
                self._slot("[ … ]" if bracket else "bare")
                continue
            if c in ("<", ">") and self._at(1) == "(" and not value:
                self.i += 2
                self._until(")", "a process substitution", opening="(")
                literal = False
            elif c in _METACHARACTERS:
                break
            elif c == "\\":
                self.i += 1
                if isinstance(self._at(), Slot):
                    self._slot("an escape")
                    slots = True
                    continue
                if self._at() != "\n":
                    value.append(self._at() or "\\")
                self.i += 1
            elif c == "'":
                self.i += 1
                while self._at() != "'":
                    self._quoted(value, "single")
                self.i += 1
            elif c == '"':
                literal &= self._double(value)
            elif c == "$" or c == "`":
                literal &= self._dollar(value, "bare")
            else:
                if c in "*?[{}" or (c == "~" and (not value or value[-1] in "=:")):
                    literal = False
                bracket |= c == "["
                value.append(c)
                self.i += 1
        text = "".join(value)
        if text.isdigit() and self._at() in ("<", ">") and self.i - start == len(text):
            return  # the number of a file descriptor belongs to the redirection
        raw = "".join(u for u in self.units[start : self.i] if not isinstance(u, Slot))
        assignment = bool(ASSIGNMENT.match(raw)) and not isinstance(self.units[start], Slot)
        if text == "[[":
            self.rereads = "[[ … ]]"
        self.tokens.append(Token("word", start, self.i, text, literal and not slots, assignment))

    def _quoted(self, value, where):
        c = self._at()
        if c == "":
            raise ShellError("a quote opens and never closes")
        if isinstance(c, Slot):
            self._slot(where)
        else:
            value.append(c)
            self.i += 1

    def _double(self, value, where="double"):
        self.i += 1
        literal = True
        while self._at() != '"':
            c = self._at()
            if c == "\\" and self._at(1) in ("$", "`", '"', "\\", "\n"):
                if self._at(1) != "\n":
                    value.append(self._at(1))
                self.i += 2
            elif c == "\\" and isinstance(self._at(1), Slot):
                self.i += 1
                self._slot("an escape")
            elif c in ("$", "`"):
                literal &= self._dollar(value, where)
            else:
                self._quoted(value, where)
        self.i += 1
        return literal

    def _dollar(self, value, where):
        """Step over a `$` or a backtick and what belongs to it; true if it is only the character itself."""
        if self._at() == "`":
            self.i += 1
            while self._at() != "`":
                if self._at() == "":
                    raise ShellError("a backtick opens and never closes")
                self.i += self._at() == "\\"
                self._plain("backticks")
            self.i += 1
            return False
        after = self._at(1)
        if isinstance(after, Slot):
            self.i += 1
            self._slot("a place after $")
            return False
        if self._starts("$(("):
            self.rereads = "$(( … ))"
            self.i += 3
            self._until(")", "arithmetic", depth=2, opening="(")
        elif after == "(":
            self.i += 2
            self._until(")", "$( … )", opening="(")
        elif after == "{":
            self.i += 2
            # ${x@P}, ${x:y} and ${x[y]} read a value again; ${x} and its fallbacks do not.
            rest = "".join(u if isinstance(u, str) else "\0" for u in self.units[self.i : self.i + 200])
            if not re.match(r"[A-Za-z_0-9]+(\}|:?[-=+?])", rest):
                self.rereads = self.rereads or "${ … }"
            self._until("}", "${ … }", opening="{")
        elif after == "[":
            self.rereads = "$[ … ]"
            self.i += 2
            self._until("]", "arithmetic", opening="[")
        elif after == "'" and where == "bare":
            self.i += 2
            return self._escapes(value)
        elif after == '"' and where == "bare":
            self.i += 1
            self._double(value, '$" … "')
        elif isinstance(after, str) and after and (after.isalnum() or after in "_@*#?-$!"):
            self.i += 2
        else:
            value.append("$")
            self.i += 1
            return True
        return False

    def _escapes(self, value):
        """Step over the rest of $'…'; true if it has no more than the simple escapes, decoded into value."""
        literal = True
        while self._at() != "'":
            c = self._at()
            if c == "":
                raise ShellError("a quote opens and never closes")
            if isinstance(c, Slot):
                self._slot("$' … '")
                continue
            if c == "\\":
                self.i += 1
                c = _ESCAPES.get(self._at()) if isinstance(self._at(), str) else None
                literal &= c is not None
            value.append(c or "")
            self._plain("$' … '")
        self.i += 1
        return literal

    def _until(self, closing, where, depth=1, opening=""):
        while depth:
            c = self._at()
            if c == "":
                raise ShellError(f"a {opening or closing} opens and never closes")
            if c == "\\":
                self.i += 1
                if self._at() != "":
                    self._plain(where)
            elif c == "'":
                self.i += 1
                while self._at() != "'":
                    if self._at() == "":
                        raise ShellError("a quote opens and never closes")
                    self._plain(where)
                self.i += 1
            elif c == '"':
                self._double([], where)
            else:
                depth += (c == opening) - (c == closing)
                self._plain(where)


def commands(tokens: list[Token]) -> list[Command]:
    """The simple commands of a token list, in order; redirections and comments left out of their words."""
    found, current, target = [], Command(), False

    def close():
        nonlocal current
        if current.words or not current.bare:
            found.append(current)
        current = Command()

    for token in tokens:
        if token.kind == "comment":
            continue
        if token.kind == "op" and token.text in _REDIRECTIONS:
            current.bare, target, current.end = False, True, token.end
        elif token.kind != "word":
            target = False
            close()
        elif target:
            target, current.end = False, token.end
        elif not current.words and (token.assignment or token.text in _RESERVED or token.text == "exec"):
            current.bare, current.end = False, token.end
        else:
            if not current.words:
                current.start = token.start
            current.words.append(token)
            current.end = token.end
    close()
    return [c for c in found if not (c.words and c.name in _CLOSING and len(c.words) == 1)]


def reread(reader: Reader) -> str | None:
    """The name of something in the text that reads a value a second time, or None."""
    for command in commands(reader.tokens):
        if command.words and (not command.words[0].literal or command.name in _REREADERS):
            return f"`{command.name}`" if command.name else "a command whose name is not written out"
    return reader.rereads


def plain(value: str) -> bool:
    """Whether a value means itself in every place of a command."""
    return PLAIN.fullmatch(value) is not None


def quote_single(value: str) -> str:
    """The value for inside an author's '…'."""
    return value.replace("'", "'\\''").replace("\n", "'$'\\n''")


def quote_double(value: str) -> str:
    """The value for inside an author's "…"."""
    return re.sub(r'([\\$`"])', r"\\\1", value).replace("\n", "\"$'\\n'\"")


_QUOTERS = {"bare": quote, "single": quote_single, "double": quote_double}


def fill(units, places: list[Place], values: dict[str, str], split: set[str] = frozenset()) -> str:
    """The command's text with each slot's value quoted for its place.

    A name in `split` is put in as it is where it stands bare (see `spark_recipe`: flags text in an author's defaults).
    Every place must be one of QUOTABLE.
    """
    filled = list(units)
    for index, slot, where in places:
        value = values[slot.name]
        filled[index] = value if where == "bare" and slot.name in split else _QUOTERS[where](value)
    return "".join(filled)
