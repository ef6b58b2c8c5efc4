# SPDX-License-Identifier: GPL-2.0-only
"""Promises of the page tree: it is a map from indices to items with tags, whatever the order of
insertions and deletions; it has no node too many; an insertion that was prepared cannot fail.
And of the tree of areas: it finds just those that have an index of the range, in order."""
import errno
import random

import pytest

from helpers import Puppet, until_waits
from shmkern import layout
from shmkern.kallsyms import ksym

C = layout.constants
NO_TAG = (1 << 32) - 1
DIRTY, WRITEBACK = C["PAGECACHE_TAG_DIRTY"], C["PAGECACHE_TAG_WRITEBACK"]
MAX_INDEX = (1 << 36) - 1
# Where trees grow, share nodes and part.
INDICES = [0, 1, 2, 62, 63, 64, 65, 127, 4095, 4096, 4097, 262143, 262144, 1 << 24, (1 << 30) - 1, 1 << 30, MAX_INDEX - 1,
           MAX_INDEX]


def walk(root, tag, start=0):
    """[(index, item)] from `start` on, as radix_tree_next_slot gives them."""
    cursor, found = layout.struct("RadixTreeRoot", root.address + 64), []
    index = layout.view("u64", cursor.address)
    index[()] = start
    while slot := ksym.radix_tree_next_slot(root, cursor.address, tag):
        found.append((int(index), int(layout.view("u64", slot))))
        index[()] += 1
    return found


def height_of(root):
    return layout.struct("RadixTreeNode", root.rnode).height if root.rnode else 0


@pytest.mark.parametrize("seed", range(6))
def test_a_tree_is_a_map_with_tags(machine, run, shared, seed):
    root = shared("RadixTreeRoot")
    shared("u64", 8)

    def program(task):
        rng, model, tags = random.Random(seed), {}, {DIRTY: set(), WRITEBACK: set()}
        for step in range(600):
            index = rng.choice(INDICES) if rng.random() < 0.5 else rng.randrange(200)
            what = rng.random()
            if what < 0.5:
                item = 64 * (step + 1)
                assert ksym.radix_tree_preload() == 0
                ksym.rcu_read_lock()
                rc = ksym.radix_tree_insert(root, index, item)
                ksym.rcu_read_unlock()
                assert rc == (-17 if index in model else 0)
                model.setdefault(index, item)
            elif what < 0.75:
                assert ksym.radix_tree_delete(root, index) == model.pop(index, 0)
                for tagged in tags.values():
                    tagged.discard(index)
            elif index in model:
                tag = rng.choice((DIRTY, WRITEBACK))
                if rng.random() < 0.6:
                    ksym.radix_tree_tag_set(root, index, tag)
                    tags[tag].add(index)
                else:
                    ksym.radix_tree_tag_clear(root, index, tag)
                    tags[tag].discard(index)
            assert ksym.radix_tree_lookup(root, index) == model.get(index, 0)
            start = rng.choice(INDICES)
            assert walk(root, NO_TAG, start) == sorted(item for item in model.items() if item[0] >= start)
            for tag, tagged in tags.items():
                assert [at for at, _ in walk(root, tag, start)] == sorted(at for at in tagged if at >= start)
                assert ksym.radix_tree_tag_get(root, index, tag) == (index in tagged)
        for index in list(model):
            ksym.radix_tree_delete(root, index)
        assert root.rnode == 0
    run(program)
    machine.audit().raise_if_broken()


def test_a_tree_is_as_high_as_its_largest_index_wants(machine, run, shared):
    root = shared("RadixTreeRoot")

    def program(task):
        heights = []
        for index in (0, 63, 64, 4096, MAX_INDEX):
            ksym.radix_tree_preload()
            ksym.radix_tree_insert(root, index, 64)
            heights.append(height_of(root))
        for index in (MAX_INDEX, 4096, 64):
            ksym.radix_tree_delete(root, index)
            heights.append(height_of(root))
        ksym.radix_tree_delete(root, 63), ksym.radix_tree_delete(root, 0)
        return heights
    assert run(program) == [1, 1, 2, 3, 6, 3, 2, 1]
    machine.audit().raise_if_broken()


def test_a_prepared_insertion_needs_no_more_memory(machine, run, shared):
    """The worst case: the tree grows from one node to its full height, and then down again."""
    root = shared("RadixTreeRoot")

    def program(task):
        ksym.radix_tree_preload()
        ksym.radix_tree_insert(root, 0, 64)
        ksym.radix_tree_preload()
        task.fail_nth(1)
        rc = ksym.radix_tree_insert(root, MAX_INDEX, 128)
        assert task.fail_nth(0) == 1, "it has allocated something"
        ksym.radix_tree_delete(root, 0), ksym.radix_tree_delete(root, MAX_INDEX)
        task.fail_nth(1)
        return rc, ksym.radix_tree_preload(), task.fail_nth(0)
    assert run(program) == (0, -errno.ENOMEM, 0)
    machine.audit().raise_if_broken()


def test_a_node_is_retired_only_when_nothing_leads_to_it(machine, run, shared):
    """Its epoch is the next reader's: whoever begins from then on is not waited for."""
    root = shared("RadixTreeRoot")
    tree = root.address

    def program(task):
        for index in (0, MAX_INDEX):
            ksym.radix_tree_preload()
            ksym.radix_tree_insert(root, index, 64)
        path, node = [], layout.struct("RadixTreeNode", root.rnode)
        while True:
            path.append(node.address)
            if node.height == 1:
                break
            shift = (node.height - 1) * C["RADIX_TREE_MAP_SHIFT"]
            node = layout.struct("RadixTreeNode", int(node.slots[MAX_INDEX >> shift & C["RADIX_TREE_MAP_SIZE"] - 1]))
        return path
    path = run(program)
    assert len(path) > 2
    # The lock that call_rcu takes: who retires a node stops there, and what it has unlinked shows.
    deleter, holder = Puppet(machine), Puppet(machine)
    lock = layout.kernel().address + layout.offsetof("Kernel", "rcu_lock")
    holder(lambda task: ksym.spin_lock(lock))
    deleter.begin(lambda task: ksym.radix_tree_delete(tree, MAX_INDEX))
    until_waits(deleter, "WAIT_SPINLOCK")
    parent = layout.struct("RadixTreeNode", path[-2])
    assert not any(parent.slots), "the leaf is retired while its parent still leads to it"
    holder(lambda task: ksym.spin_unlock(lock))
    assert deleter.reply() == 64
    run(lambda task: ksym.radix_tree_delete(root, 0))
    machine.audit().raise_if_broken()


def test_insertion_without_preparation_is_a_kernel_bug(machine, shared, stops):
    root = shared("RadixTreeRoot")
    assert "radix_tree" in stops(machine, lambda task: ksym.radix_tree_insert(root, 0, 64))


@pytest.mark.parametrize("seed", range(4))
def test_the_tree_of_areas_finds_what_a_list_would(machine, run, shared, seed):
    root, areas = shared("RbRoot"), [shared("VmAreaStruct") for _ in range(60)]

    def program(task):
        rng, inside = random.Random(seed), []
        for _step in range(1500):
            area = rng.choice(areas)
            if area.address in inside:
                ksym.vma_interval_tree_remove(area, root)
                inside.remove(area.address)
            else:
                area.vm_pgoff, pages = rng.randrange(100), rng.randrange(1, 20)
                area.vm_start, area.vm_end = 0, pages * 4096
                same = [other for other in areas if other.address in inside and other.vm_pgoff == area.vm_pgoff]
                if same and rng.random() < 0.5:
                    ksym.vma_interval_tree_insert_after(area, same[0], root)
                    inside.insert(inside.index(same[0].address) + 1, area.address)
                else:
                    ksym.vma_interval_tree_insert(area, root)
                    behind = [i for i, address in enumerate(inside)
                              if layout.struct("VmAreaStruct", address).vm_pgoff <= area.vm_pgoff]
                    inside.insert(max(behind, default=-1) + 1, area.address)
            start = rng.randrange(120)
            last = start + rng.randrange(15)
            found, at = [], ksym.vma_interval_tree_iter_first(root, start, last)
            while at:
                found.append(at)
                at = ksym.vma_interval_tree_iter_next(at, start, last)
            wanted = []
            for address in inside:
                other = layout.struct("VmAreaStruct", address)
                if other.vm_pgoff <= last and other.vm_pgoff + other.vm_end // 4096 - 1 >= start:
                    wanted.append(address)
            assert found == wanted
    run(program)
