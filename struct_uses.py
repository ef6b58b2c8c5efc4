# SPDX-License-Identifier: GPL-2.0-only
"""What of each struct a module's C depends on: of its members those up to one, or the whole.

Who adds a member to a struct shall wait for the modules that take one of those behind it, or that need the struct's
size, and not for all that have a pointer to it.  This is read from what Cython is about to make C of, where nothing
depends any more on how it was written.

Macros of headers are not looked into: none may ask for the size of a struct.  Nor does it count how a struct is aligned
as a whole, of which gcc may make other instructions: no member is aligned to more than eight bytes, and below sixteen
they are the same.
"""
from Cython.Compiler import ExprNodes, ModuleNode, Nodes, UtilNodes
from Cython.Compiler.Visitor import TreeVisitor

WHOLE = None

# Where a pointer to a struct does not ask for its size, whatever else it is there for: who keeps it, passes it on,
# compares it or follows it to a member.  Anywhere else it may be counted on from (p + 1, p[i], sizeof).
KEEPS_OR_FOLLOWS = (
    ExprNodes.AmpersandNode, ExprNodes.AttributeNode, ExprNodes.BoolBinopNode, ExprNodes.BoolBinopResultNode,
    ExprNodes.CoerceToBooleanNode, ExprNodes.CoerceToTempNode, ExprNodes.CondExprNode, ExprNodes.NotNode,
    ExprNodes.PrimaryCmpNode, ExprNodes.SimpleCallNode, ExprNodes.TypecastNode,
    Nodes.ExprStatNode, Nodes.IfClauseNode, Nodes.ReturnStatNode, Nodes.SingleAssignmentNode, Nodes.WhileStatNode,
    UtilNodes.LetNode,
)


class StructUses(TreeVisitor):
    """last: by the name of a struct, the last of its members that is taken, or WHOLE."""

    def __init__(self):
        super().__init__()
        self.last = {}

    def visit_ModuleNode(self, node):
        # Variables of its .pxd, which may be there for others.
        for entry in node.scope.var_entries:
            self.whole(entry.type)
        # Who has a class of another module checks its size when it is loaded.
        scopes = []
        node.find_referenced_modules(node.scope, scopes, {})
        for scope in scopes:
            for a_class in scope.c_class_entries:
                for member in a_class.type.scope.var_entries if a_class.type.scope else ():
                    self.whole(member.type)
        self.visitchildren(node)

    def visit_CFuncDefNode(self, node):
        # Also of a struct that it does not use: in which registers the next argument is depends on the size.
        for type in (node.type.return_type, *(argument.type for argument in node.type.args)):
            self.whole(type)
        self.visitchildren(node)

    def visit_Node(self, node):
        self.visitchildren(node)

    def visit_ExprNode(self, node):
        self.whole(node.type)
        pointed_to = struct_behind(node.type)
        if pointed_to and not isinstance(self.access_path[-1][0], KEEPS_OR_FOLLOWS):
            self.whole(pointed_to)
        self.visitchildren(node)

    def visit_SizeofTypeNode(self, node):
        self.whole(node.arg_type)
        self.visit_ExprNode(node)

    def visit_AttributeNode(self, node):
        struct = struct_behind(node.obj.type)
        if struct:
            self.member(struct, node.attribute)
        self.visit_ExprNode(node)

    def member(self, struct, name):
        """`name` of a struct is taken: where that is depends on the size of all before it."""
        if struct.name in self.last and self.last[struct.name] is WHOLE:
            return
        names = [member.name for member in members(struct)]
        if struct.name in self.last and names.index(self.last[struct.name]) >= names.index(name):
            return
        self.last[struct.name] = name
        for member in members(struct)[:names.index(name)]:
            self.whole(member.type)

    def whole(self, type):
        """The size of `type` is needed."""
        struct = struct_in(type)
        if struct and self.last.get(struct.name, ()) is not WHOLE:
            self.last[struct.name] = WHOLE
            for member in members(struct):
                self.whole(member.type)


def plain(type):
    """A type without the name and the const that it may have."""
    while type and (type.is_typedef or type.is_cv_qualified):
        type = type.typedef_base_type if type.is_typedef else type.cv_base_type
    return type


def struct_in(type):
    """The struct that a variable of this type is, or an array of which it is; or None."""
    type = plain(type)
    while type and type.is_array:
        type = plain(type.base_type)
    return type if type and type.is_struct_or_union else None


def struct_behind(type):
    """The struct that this type is a pointer to, or None."""
    type = plain(type)
    return struct_in(type.base_type) if type and type.is_ptr else None


def members(struct):
    return struct.scope.var_entries if struct.scope else []


def watch(last):
    """From here on, whatever module Cython makes C of, its struct uses are put into the dict `last`."""
    make_c = ModuleNode.ModuleNode.process_implementation

    def process_implementation(module, options, result):
        uses = StructUses()
        uses.visit(module)
        last.update(uses.last)
        return make_c(module, options, result)
    ModuleNode.ModuleNode.process_implementation = process_implementation
