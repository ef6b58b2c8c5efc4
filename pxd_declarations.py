# SPDX-License-Identifier: GPL-2.0-only
"""Which declarations of the .pxd files a kernel module depends on: setup.py's question.

Nearly every module includes nearly every .pxd, as a file of Linux includes most headers, but uses
few of the names in them.  Who changes one function's signature shall wait for the modules that
call it, and not for all.

A module depends on the declarations whose names are in its text, on those whose names are in
these, and so on.  A name is a word, whatever it means there: a local called as some function is
makes one module too many compiled, and nothing makes one too few.

Of a struct's members those count that the module takes, and those before them: where these are decides where
the others are.  Which they are Cython has said when it made the module's C (struct_uses.py).
"""
import functools
import io
import re
import tokenize
from typing import NamedTuple

WORD = re.compile(r"[A-Za-z_]\w*")
INDENT, DEDENT, END = "<indent>", "<dedent>", "<end>"

# Of a statement's first line, in tokens with blanks between.  The name is what it declares.
ONE_NAME = [
    re.compile(r"c(type)?def (packed )?(struct|union) (?P<name>\w+)\b.*"),
    re.compile(r"c(type)?def class (?P<name>\w+)\b.*"),
    re.compile(r"c(type)?def [^=(]*?\b(?P<name>\w+)( \[ \w+ \])? <end>"),           # a variable or a type
    re.compile(r"ctypedef [^=(\[]*\( \* (?P<name>\w+) \) \(.*"),                    # of a pointer to a function
    re.compile(r"cp?def [^=(\[]*\b(?P<name>\w+) \((?! \*).*"),                      # a function
]
KEYWORDS = frozenset({"cdef", "cpdef", "ctypedef", "const", "enum", "extern", "from", "nogil", "noexcept"})
A_STRUCT = re.compile(r"cdef (struct|union) \w+ : <end>")
A_MEMBER = re.compile(r"(?P<type>[^,(\[]*?)(?P<name>\w+)(?P<sizes>( \[ \w+ \])*)")
AN_ENUM = re.compile(r"cdef enum : <end>")
AN_ENUMERATOR = re.compile(r"(?P<name>\w+) = [^=,]*")


class Declaration(NamedTuple):
    """A statement at the left margin of a .pxd, or one enumerator, without comments.

    file: whose; what is compiled has the names of a module's functions with that of the module.
    names: what it declares; none for what concerns all who include the file: a cimport, C or its headers.
    words: all that is named in it, but for a struct's members.
    text: its tokens; those of code with their lines, which compiled code has in it.
    members: of a struct, in their order.
    """
    file: str
    names: frozenset
    words: frozenset
    text: str
    members: tuple = ()

    def taken(self, last):
        """The members of a struct of which a module takes those up to the one that `last` has under the struct's
        name: all if that is None, none if there is no such name.  ValueError if the member is gone."""
        (name,) = self.names if self.members else (None,)
        if name not in last or last[name] is None:
            return self.members if name in last else ()
        return self.members[:[member.name for member in self.members].index(last[name]) + 1]


class Member(NamedTuple):
    name: str
    words: frozenset        # but for the name
    text: str


def text_needed(own, pxds, last):
    """All text that decides what a module is compiled to: its own, and that of the declarations that it needs.

    own: its .py and its .pxd, as texts; pxds: those of all .pxd files that it includes, by name; last: what it takes
    of each struct, see Declaration.taken.
    """
    return [*own, *("\n".join([each.file, each.text, *(member.text for member in each.taken(last))])
                    for each in needed(own, pxds, lambda struct: struct.taken(last)))]


def unneeded_names(own, pxds):
    """What the .pxd files declare and a module does not need, whatever it takes of structs."""
    def names(some):
        return {name for declaration in some for name in declaration.names}
    return names(all_declarations(pxds)) - names(needed(own, pxds, lambda struct: struct.members))


def needed(own, pxds, taken):
    """The declarations that a module depends on, in their order, if it takes the members `taken` of each struct."""
    everything = all_declarations(pxds)
    declared = {}
    for declaration in everything:
        for name in declaration.names:
            declared.setdefault(name, []).append(declaration)
    found = todo = {declaration for declaration in everything if not declaration.names}
    words, seen = _words(WORD.findall("".join(own))), set()
    while todo or words != seen:
        for declaration in todo:
            # What a cimport names concerns who names it as well.
            if "cimport" not in declaration.words:
                words = words.union(declaration.words, *(member.words for member in taken(declaration)))
        todo = {each for name in words - seen for each in declared.get(name, ())} - found
        seen, found = words, found | todo
    return [declaration for declaration in everything if declaration in found]


def all_declarations(pxds):
    return [declaration for file, pxd in pxds.items() for declaration in declarations(file, pxd)]


@functools.cache
def declarations(file, pxd):
    """The declarations in the text of a .pxd, in its order."""
    return [declaration for lines, tokens in _statements(pxd) for declaration in _parse(file, lines, tokens)]


def _statements(pxd):
    """Each statement at the left margin, as two lists: the lines its tokens are in, and the tokens.
    What is indented below a statement belongs to it, and it to the decorator above it."""
    marks = {tokenize.INDENT: INDENT, tokenize.DEDENT: DEDENT, tokenize.NEWLINE: END}
    depth, lines, tokens, line_begins = 0, [], [], 0
    for token in tokenize.generate_tokens(io.StringIO(pxd).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            continue
        tokens.append(marks.get(token.type, token.string))
        # The end of what is indented is where the next statement begins; that is not its line.
        lines.append(lines[-1] if token.type == tokenize.DEDENT else token.start[0])
        depth += (tokens[-1] == INDENT) - (tokens[-1] == DEDENT)
        if tokens[-1] == END:
            more_follows = tokens[-2] == ":" or tokens[line_begins] == "@"
            line_begins = len(tokens)
        if depth == 0 and (tokens[-1] == DEDENT or tokens[-1] == END and not more_follows):
            yield lines, tokens
            lines, tokens, line_begins = [], [], 0


def _parse(file, lines, tokens):
    """The Declarations that one statement makes."""
    begin = 0
    while tokens[begin] == "@":
        begin = tokens.index(END, begin) + 1
    end = tokens.index(INDENT) if INDENT in tokens else len(tokens)
    head = " ".join(tokens[begin:end])
    members = " ".join(tokens[end + 1:-1]).removesuffix(f" {END}").split(f" {END} ")
    if AN_ENUM.fullmatch(head) and all(map(AN_ENUMERATOR.fullmatch, members)):
        return [Declaration(file, frozenset(member.split()[:1]), _words(member.split()), member) for member in members]
    outside = set(_outside_brackets(tokens[begin:end]))
    has_code = "(" in outside and ":" in outside and "class" not in outside     # perhaps on the same line
    names = frozenset()
    if tokens[begin] in ("cdef", "cpdef", "ctypedef") and not head.startswith("cdef extern"):
        match = next(filter(None, (pattern.fullmatch(head) for pattern in ONE_NAME)), None)
        if match and "," not in outside and ";" not in outside:
            names = frozenset([match["name"]])
        else:
            names = _words(tokens) - KEYWORDS       # one of them, or several: too many do no harm
    if A_STRUCT.fullmatch(head):
        parts = [A_MEMBER.fullmatch(member) for member in members]
        if all(parts):
            return [Declaration(file, names, frozenset(), head, tuple(
                Member(part["name"], _words((part["type"] + part["sizes"]).split()), part.string) for part in parts))]
    text = " ".join(map("{}:{}".format, lines, tokens) if has_code else tokens)
    return [Declaration(file, names, _words(tokens), text)]


def _outside_brackets(tokens):
    """Those that are in none, and what opens one."""
    depth = 0
    for token in tokens:
        if depth == 0:
            yield token
        depth += (token in {"(", "[", "{"}) - (token in {")", "]", "}"})


def _words(tokens):
    return frozenset(filter(WORD.fullmatch, tokens))
