# SPDX-License-Identifier: GPL-2.0-only
"""Object caches: what one gets is zeroed and one's own; what one gave back is poisoned, and
whoever touches it still is found out."""
import errno

import pytest
from multiprocess import get_context

from shmkern import layout
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)

ARENA_PAGE = C["PAGE_SIZE"]


@pytest.fixture
def make_cache(run, shared):
    """make_cache(size) is a new cache of objects of that size."""
    def make_cache(size):
        name = shared("u64")
        name[0] = int.from_bytes(b"test", "little")
        return layout.struct("KmemCache", run(lambda task: ksym.kmem_cache_create(name.ctypes.data, size)))
    return make_cache


def words(obj, size):
    """The words of an object, live."""
    return layout.view("u64", obj, size // 8)


@pytest.mark.parametrize("size", [16, 24, 64, 136, 1000, 2056, 4096])
def test_objects_are_zeroed_apart_from_each_other_and_come_by_the_page(run, make_cache, size):
    cache = make_cache(size)
    per_page = ARENA_PAGE // size

    def program(task):
        objects = [ksym.kmem_cache_alloc(cache) for _ in range(2 * per_page + 1)]
        clean = all(not words(obj, size).any() for obj in objects)
        for obj in objects:
            words(obj, size)[:] = obj
        intact = all((words(obj, size) == obj).all() for obj in objects)
        counts = cache.nr_objects, cache.nr_free
        for obj in objects:
            ksym.kmem_cache_free(cache, obj)
        return clean, intact, counts, min(objects), max(objects)
    clean, intact, counts, first, last = run(program)
    assert clean and intact
    assert counts == (3 * per_page, per_page - 1)
    # One empty slab it keeps.
    assert (cache.nr_objects, cache.nr_free) == (per_page, per_page)
    kernel = layout.kernel()
    assert kernel.slab_base <= first and last + size <= kernel.slab_next <= kernel.slab_end
    assert first % 8 == 0 and cache.name == b"test"


def test_freed_object_is_poisoned_and_handed_out_clean_again(run, make_cache):
    cache = make_cache(64)

    def program(task):
        obj = ksym.kmem_cache_alloc(cache)
        words(obj, 64)[:] = 7
        ksym.kmem_cache_free(cache, obj)
        poisoned = bytes(words(obj, 64)[1:].tobytes())
        again = ksym.kmem_cache_alloc(cache)
        clean = not words(again, 64).any()
        ksym.kmem_cache_free(cache, again)
        return poisoned, again == obj, clean
    assert run(program) == (bytes([C["POISON_FREE"]]) * 56, True, True)


def test_double_free_is_a_kernel_bug(machine, make_cache, stops):
    cache = make_cache(64)

    def program(task):
        obj = ksym.kmem_cache_alloc(cache)
        ksym.kmem_cache_free(cache, obj)
        ksym.kmem_cache_free(cache, obj)
    report = stops(machine, program)
    assert "Slab: double free" in report and "slab.py:" in report and "about test at 0x" in report


@pytest.mark.parametrize("word", [1, 4, 7])
def test_write_after_free_is_a_kernel_bug_when_the_object_is_next_handed_out(machine, make_cache, stops, word):
    cache = make_cache(64)

    def program(task):
        obj = ksym.kmem_cache_alloc(cache)
        ksym.kmem_cache_free(cache, obj)
        words(obj, 64)[word] ^= 1 << 8 * word
        ksym.kmem_cache_alloc(cache)
    report = stops(machine, program)
    assert "Slab corruption: a free object was written to" in report and "slab.py:" in report


def test_object_given_to_another_cache_is_a_kernel_bug(machine, make_cache, stops):
    cache, other = make_cache(64), make_cache(64)
    report = stops(machine, lambda task: ksym.kmem_cache_free(other, ksym.kmem_cache_alloc(cache)))
    assert "Slab: an object is given to a cache that it is not from" in report


def test_object_freed_again_after_its_slab_has_gone_is_a_kernel_bug(machine, make_cache, stops):
    cache = make_cache(4096)

    def program(task):
        objects = [ksym.kmem_cache_alloc(cache) for _ in range(3)]
        for obj in [*objects, objects[1]]:
            ksym.kmem_cache_free(cache, obj)
    assert "Slab: an object is given to a cache that it is not from" in stops(machine, program)


def test_write_to_a_page_that_its_cache_has_given_back_is_a_kernel_bug(machine, make_cache, stops):
    cache = make_cache(4096)

    def program(task):
        objects = [ksym.kmem_cache_alloc(cache) for _ in range(3)]
        for obj in objects:
            ksym.kmem_cache_free(cache, obj)
        for obj in objects:
            words(obj, 4096)[100] ^= 1
        for _ in range(3):
            ksym.kmem_cache_alloc(cache)
    assert "Slab corruption: a free" in stops(machine, program)


def test_what_one_cache_gives_back_serves_another(boot):
    """Areas until there is no memory for one more; afterwards there is room for whatever else."""
    machine = boot(1, 64, max_tasks=4)

    def program(task):
        areas = []
        with pytest.raises(OSError):
            while True:
                areas.append(task.mmap(4096, prot=len(areas) % 2))
        for va in areas:
            task.munmap(va, 4096)
        # Its anon_vma is the first, so it needs a page of the arena.
        va = task.mmap(4096)
        task.store(va, b"room again")
        return len(areas), task.load(va, 10)
    count, data = machine.spawn(program).result(timeout=60)
    assert count > 100 and data == b"room again"


@pytest.mark.parametrize("size", [8, 20, 4104])
def test_cache_of_a_size_that_cannot_be_is_a_kernel_bug(machine, shared, stops, size):
    assert "slab.py:" in stops(machine, lambda task: ksym.kmem_cache_create(shared("u64").ctypes.data, size))


def test_no_more_than_slab_caches_max(machine, shared, stops):
    def program(task):
        for _ in range(C["SLAB_CACHES_MAX"]):
            ksym.kmem_cache_create(shared("u64").ctypes.data, 64)
    assert "SLAB_CACHES_MAX" in stops(machine, program)


def test_used_up_arena_gives_null_and_enomem_and_nothing_is_lost(boot):
    machine = boot(1, 64, max_tasks=4)
    cache = layout.struct("KmemCache", layout.kernel().vm_area_cachep)

    def program(task):
        taken = []
        while obj := ksym.kmem_cache_alloc(cache):
            taken.append(obj)
        with pytest.raises(OSError) as refused:
            task.mmap(4096)
        kernel = layout.kernel()
        left = kernel.slab_end - kernel.slab_next
        for obj in taken:
            ksym.kmem_cache_free(cache, obj)
        task.store(task.mmap(4096, addr=1 << 32), b"room again")
        return refused.value.errno, len(set(taken)), len(taken), left
    err, different, count, left = machine.spawn(program).result(timeout=30)
    assert err == errno.ENOMEM
    assert different == count > 64
    assert left == 0


def test_fail_nth_makes_that_allocation_fail_and_no_other(run, make_cache):
    cache = make_cache(32)

    def program(task):
        task.fail_nth(3)
        objects = [ksym.kmem_cache_alloc(cache) for _ in range(6)]
        for obj in objects:
            if obj:
                ksym.kmem_cache_free(cache, obj)
        return [bool(obj) for obj in objects], task.fail_nth(0)
    assert run(program) == ([True, True, False, True, True, True], 0)


def test_no_object_is_handed_out_to_two_processes(machine, make_cache):
    """As many allocations a second as Python can make, and each task's number in its objects."""
    cache, start = make_cache(32), mp.Barrier(4)
    kernel = layout.kernel()
    arena = layout.view("u64", kernel.slab_base, (kernel.slab_end - kernel.slab_base) // 8)

    def program(task):
        alloc, free, base = ksym.kmem_cache_alloc, ksym.kmem_cache_free, kernel.slab_base
        start.wait(20)
        mine, wrong = [], 0
        for _ in range(4000):
            for _object in range(3):
                obj = alloc(cache)
                wrong += arena[(obj - base >> 3) + 2] != 0
                arena[(obj - base >> 3) + 2] = task.pid
                mine.append(obj)
            while mine:
                obj = mine.pop()
                wrong += arena[(obj - base >> 3) + 2] != task.pid
                free(cache, obj)
        return int(wrong)
    children = [machine.spawn(program) for _ in range(4)]
    assert [child.result(timeout=40) for child in children] == [0] * 4
    assert cache.nr_free == cache.nr_objects
