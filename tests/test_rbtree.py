# SPDX-License-Identifier: GPL-2.0-only
"""Red-black trees: always in order and in balance, against a sorted list."""
import bisect
import random

import pytest
from hypothesis import given, settings, strategies as st

from shmkern import layout
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

NODE = layout.sizeof("RbNode")
ROOM = 512
# One forest for the whole file: the functions touch nothing but nodes, and need no machine.
_nodes = layout.np.zeros(ROOM * NODE + 2 * NODE, layout.np.uint8)
BASE = (_nodes.ctypes.data + NODE - 1) // NODE * NODE
ROOT = layout.struct("RbRoot", BASE + ROOM * NODE)


def node(key):
    """The node of a key, which is its place in memory."""
    return layout.struct("RbNode", BASE + key * NODE)


def key(address):
    """The key of a node's address; None of NULL."""
    return (address - BASE) // NODE if address else None


def insert(new):
    """Walks down to where `new` belongs and hangs it there, as insert_vm_struct does."""
    link, parent = ROOT.address, 0
    while address := int(layout.view("u64", link)[()]):
        parent = address
        link = address + layout.offsetof("RbNode", "rb_left" if new < key(address) else "rb_right")
    ksym.rb_insert(ROOT, node(new), parent, link)


def check(address, parent):
    """The keys below a node in order, and its height in black nodes; every rule is kept."""
    if not address:
        return [], 1
    here = layout.struct("RbNode", address)
    assert here.rb_parent == parent
    left, left_height = check(here.rb_left, address)
    right, right_height = check(here.rb_right, address)
    assert left_height == right_height, "not every path has as many black nodes"
    if here.rb_red:
        for child in filter(None, (here.rb_left, here.rb_right)):
            assert not layout.struct("RbNode", child).rb_red, "a red node has a red child"
    assert here.rb_red in (0, 1)
    return left + [key(address)] + right, left_height + (not here.rb_red)


def whole_tree():
    """All keys in order; fails when a rule is broken."""
    keys, _height = check(ROOT.rb_node, 0)
    assert not ROOT.rb_node or not layout.struct("RbNode", ROOT.rb_node).rb_red, "the root is red"
    walked, address = [], ksym.rb_first(ROOT)
    while address:
        walked.append(key(address))
        address = ksym.rb_next(address)
    assert walked == keys
    return keys


@pytest.fixture(autouse=True)
def empty_tree():
    """Begins with an empty tree."""
    ROOT.rb_node = 0


def test_empty_tree_has_no_first_node():
    assert ksym.rb_first(ROOT) == 0


@pytest.mark.parametrize("order", ["rising", "falling", "from outside", "random"])
def test_tree_of_any_order_of_insertion_is_in_order_and_in_balance(order):
    keys = list(range(ROOM))
    {"rising": lambda: None, "falling": keys.reverse,
     "from outside": lambda: keys.sort(key=lambda key: -abs(key - ROOM // 2)),
     "random": lambda: random.Random(5).shuffle(keys)}[order]()
    for count, new in enumerate(keys, 1):
        insert(new)
        if count % 37 == 0 or count == ROOM:
            assert whole_tree() == sorted(keys[:count])


@pytest.mark.parametrize("seed", range(3))
def test_tree_is_what_a_sorted_list_is(seed):
    rng = random.Random(seed)
    model = []
    for step in range(1500):
        chosen = rng.randrange(ROOM)
        place = bisect.bisect_left(model, chosen)
        present = place < len(model) and model[place] == chosen
        # Long phases of growth and of shrinking, so that it gets full and empty.
        if present and (step // 300 % 2 or rng.random() < 0.3):
            ksym.rb_erase(ROOT, node(chosen))
            model.remove(chosen)
        elif not present:
            insert(chosen)
            model.insert(place, chosen)
        if step % 10 == 0:
            assert whole_tree() == model
    for erased in rng.sample(model, len(model)):
        ksym.rb_erase(ROOT, node(erased))
        model.remove(erased)
        if len(model) % 10 == 0:
            assert whole_tree() == model
    assert ROOT.rb_node == 0


@settings(max_examples=80, deadline=None, database=None)
@given(st.lists(st.integers(0, 24), max_size=80))
def test_every_small_history_keeps_every_rule(history):
    """A number is inserted if it is not there and erased if it is; all is checked each time."""
    ROOT.rb_node = 0
    model = set()
    for chosen in history:
        if chosen in model:
            ksym.rb_erase(ROOT, node(chosen))
        else:
            insert(chosen)
        model ^= {chosen}
        assert whole_tree() == sorted(model)


def test_tree_is_never_higher_than_twice_the_logarithm():
    def height(address):
        here = layout.struct("RbNode", address) if address else None
        return 1 + max(height(here.rb_left), height(here.rb_right)) if here else 0
    for new in range(ROOM - 1):
        insert(new)
    assert height(ROOT.rb_node) <= 2 * 9
