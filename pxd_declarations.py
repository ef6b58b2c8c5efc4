# SPDX-License-Identifier: GPL-2.0-only
"""Which declarations of the .pxd files a kernel module depends on: setup.py's question.

Nearly every module includes nearly every .pxd, as a file of Linux includes most headers, but uses
few of the names in them.  Who changes one function's signature shall wait for the modules that
call it, and not for all.

A module depends on the declarations whose names are in its text, on those whose names are in
these, and so on.  A name is a word, whatever it means there: a local called as some function is
makes one module too many compiled, and nothing makes one too few.

Of a struct that only declarations name, behind a pointer, and none of whose fields is named, a module needs
no more than that there is one.  Cython is not shown more either (translator.py), so that what this overlooks is an
error of the compiler and no module too few: arithmetic with a pointer whose type nobody named.
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
BEHIND_A_POINTER = re.compile(r"\bpointer ?\( ?\w+ ?\)|\b\w+ ?\*")
A_FIELD = re.compile(r"\. ?(\w+)")
AN_ENUM = re.compile(r"cdef enum : <end>")
AN_ENUMERATOR = re.compile(r"(?P<name>\w+) = [^=,]*")


class Declaration(NamedTuple):
    """A statement at the left margin of a .pxd, or one enumerator, without comments.

    file: whose; what is compiled has the names of a module's functions with that of the module.
    names: what it declares; none for what concerns all who include the file: a cimport, C or its headers.
    words: all that is named in it.
    values: of them, what is not only named behind a pointer; in code, where pointers are followed, all.
    fields: those of a struct; in code, those that it takes of any.
    is_struct: whether it can be needed by its name alone.
    text: its tokens; those of code with their lines, which compiled code has in it.
    """
    file: str
    names: frozenset
    words: frozenset
    values: frozenset
    fields: frozenset
    is_struct: bool
    text: str


def text_needed(own, pxds):
    """All text that decides what a module is compiled to: its own, and that of the declarations that it needs.

    own: its .py and its .pxd, as texts; pxds: those of all .pxd files that it includes, by name.
    """
    found, whole = needed(own, pxds)
    return [*own, *(f"{each.file} {each.text if each in whole else sorted(each.names)}" for each in found)]


def unneeded_names(own, pxds):
    """What the .pxd files declare and a module does not need; and the structs that it needs by name."""
    def names(some):
        return {name for declaration in some for name in declaration.names}
    found, whole = needed(own, pxds)
    return names(all_declarations(pxds)) - names(found), names(found) - names(whole)


def needed(own, pxds):
    """The declarations that a module depends on, in their order; and those of them that it needs as a whole."""
    everything = all_declarations(pxds)
    declared = {}
    for declaration in everything:
        for name in declaration.names:
            declared.setdefault(name, []).append(declaration)
    text = "".join(own)
    found = {declaration for declaration in everything if not declaration.names}
    whole = set(found)
    words = values = _words(WORD.findall(text))
    fields = set(A_FIELD.findall(text))
    todo = list(found)
    seen = set()
    while True:
        for declaration in todo:
            # What a cimport names concerns who names it as well.
            if "cimport" not in declaration.words:
                words, values = words | declaration.words, values | declaration.values
                if not declaration.is_struct:
                    fields |= declaration.fields
        for name in words - seen:
            found.update(declared.get(name, ()))
        seen |= words
        todo = [declaration for declaration in found - whole
                if not declaration.is_struct or declaration.names & values or declaration.fields & fields]
        whole.update(todo)
        if not todo and words == seen:
            return [declaration for declaration in everything if declaration in found], whole


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
        return [Declaration(file, names=frozenset(member.split()[:1]), words=_words(member.split()),
                            values=_words(member.split()), fields=frozenset(), is_struct=False, text=member)
                for member in members]
    outside = set(_outside_brackets(tokens[begin:end]))
    has_code = "(" in outside and ":" in outside and "class" not in outside     # perhaps on the same line
    names = frozenset()
    if tokens[begin] in ("cdef", "cpdef", "ctypedef") and not head.startswith("cdef extern"):
        match = next(filter(None, (pattern.fullmatch(head) for pattern in ONE_NAME)), None)
        if match and "," not in outside and ";" not in outside:
            names = frozenset([match["name"]])
        else:
            names = _words(tokens) - KEYWORDS       # one of them, or several: too many do no harm
    words, text = _words(tokens), " ".join(tokens)
    if A_STRUCT.fullmatch(head):
        # Its own name makes no value of it; and of a member's words any may be the field.
        inside = " ".join(members)
        return [Declaration(file, names, words, _values(inside), _words(inside.split()), True, text)]
    values, fields = words if has_code else _values(text), frozenset(A_FIELD.findall(text))
    if has_code:
        text = " ".join(map("{}:{}".format, lines, tokens))
    return [Declaration(file, names, words, values, fields, False, text)]


def _values(text):
    """What a text names elsewhere than behind a pointer."""
    return frozenset(WORD.findall(BEHIND_A_POINTER.sub(" ", text)))


def _outside_brackets(tokens):
    """Those that are in none, and what opens one."""
    depth = 0
    for token in tokens:
        if depth == 0:
            yield token
        depth += (token in {"(", "[", "{"}) - (token in {")", "]", "}"})


def _words(tokens):
    return frozenset(filter(WORD.fullmatch, tokens))
