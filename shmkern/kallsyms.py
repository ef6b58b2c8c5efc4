# SPDX-License-Identifier: GPL-2.0-only
"""Kernel functions by name, for tests and for looking around.

    from shmkern.kallsyms import ksym

    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        ksym.lock_page(page)

A pointer is its address, as an int, and NULL is 0; whatever has an `.address` (a
layout.Struct) will do for one.  A bint is 0 or 1.  As in C nothing is checked: a wrong
address ends the process.  Whoever calls a function that locks, counts or allocates must be
a task; and to the freezer it is outside the kernel, so that an audit does not wait for it,
unless it calls kernel_enter first.

Cython keeps the C address and signature of every function that a .pxd declares in
__pyx_capi__.  Inline functions have neither, so those that are wanted have a copy here,
out of line.
"""
import ctypes
import functools
import importlib
import re
from pathlib import Path

from shmkern import layout

# Their functions are for Python: with exceptions, and with the GIL.
NOT_KERNEL = {"__init__", "bulk", "calibrate", "cython_shared", "lackey", "numa", "replay", "syscalls"}

_SCALARS = {"void": None, "int": ctypes.c_int, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64,
            "i32": ctypes.c_int32, "i64": ctypes.c_int64, "pte_t": ctypes.c_uint64,
            "swp_entry_t": ctypes.c_uint64, "new_page_t": ctypes.c_uint64, "reclaim_t": ctypes.c_uint64}
_get_name = ctypes.pythonapi.PyCapsule_GetName
_get_name.restype, _get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _ctype(text):
    """The ctypes type of one type of a signature.  Raises KeyError for one it has none for."""
    text = text.strip()
    if text.endswith("*"):
        return ctypes.c_uint64
    return _SCALARS[re.sub(r"^__pyx_t_7shmkern_\d+[a-z]+_", "", text)]


def _callable(capsule):
    """A Python callable for a capsule of __pyx_capi__."""
    signature = _get_name(capsule)
    returns, args = re.fullmatch(r"(.*?) ?\((.*)\)", signature.decode()).groups()
    args = [] if args == "void" else [_ctype(arg) for arg in args.split(",")]
    function = ctypes.PYFUNCTYPE(_ctype(returns), *args)(_get_pointer(capsule, signature))

    def call(*values):
        return function(*[int(getattr(value, "address", value)) for value in values])
    return call


@functools.cache
def _capsules():
    """{name: capsule} of the kernel's functions."""
    found = {}
    for path in sorted(Path(layout.__file__).parent.glob("*.pxd")):
        if path.with_suffix(".py").exists() and path.stem not in NOT_KERNEL:
            found.update(getattr(importlib.import_module(f"shmkern.{path.stem}"), "__pyx_capi__", {}))
    return found


def symbol_address(name):
    """Where a kernel function is, for those that are given one."""
    return _get_pointer(_capsules()[name], _get_name(_capsules()[name]))


class Symbols:
    """Every kernel function is an attribute."""

    def __getattr__(self, name):
        if name not in _capsules():
            raise AttributeError(f"the kernel has no function {name}()")
        function = _callable(_capsules()[name])
        setattr(self, name, function)
        return function

    def __dir__(self):
        return sorted(_capsules())


ksym = Symbols()


# ---- copies of inline functions -----------------------------------------------

def might_sleep():
    locks.might_sleep()


def spin_lock(lock):
    locks.spin_lock(lock)


def spin_unlock(lock):
    locks.spin_unlock(lock)


def spin_is_held(lock):
    return locks.spin_is_held(lock)


def wait_on_page_locked(page):
    locks.wait_on_page_locked(page)


def wait_on_page_writeback(page):
    locks.wait_on_page_writeback(page)


def rcu_read_lock():
    rcu.rcu_read_lock()


def rcu_read_unlock():
    rcu.rcu_read_unlock()


def INIT_LIST_HEAD(head):
    lists.INIT_LIST_HEAD(head)


def list_empty(head):
    return lists.list_empty(head)


def list_add(new, head):
    lists.list_add(new, head)


def list_add_tail(new, head):
    lists.list_add_tail(new, head)


def list_del(entry):
    lists.list_del(entry)


def pfn_to_page(pfn):
    return frames.pfn_to_page(pfn)


def page_to_pfn(page):
    return frames.page_to_pfn(page)


def page_address(page):
    return frames.page_address(page)


def page_count(page):
    return frames.page_count(page)


def page_mapcount(page):
    return frames.page_mapcount(page)


def get_page(page):
    frames.get_page(page)


def get_page_unless_zero(page):
    return frames.get_page_unless_zero(page)


def put_page_testzero(page):
    return frames.put_page_testzero(page)


def page_freeze_refs(page, count):
    return frames.page_freeze_refs(page, count)


def page_unfreeze_refs(page, count):
    frames.page_unfreeze_refs(page, count)


def page_lru(page):
    return lru.page_lru(page)


def put_page(page):
    lru.put_page(page)


def alloc_page(gfp):
    return mempolicy.alloc_page(gfp)


def get_bh(bh):
    buffer.get_bh(bh)


def put_bh(bh):
    buffer.put_bh(bh)


def walk_to_pmd(mm, address):
    return pagetable.walk_to_pmd(mm, address)


def pte_offset(pmd, address):
    return pagetable.pte_offset(pmd, address)


def pte_lockptr(pmd):
    return pagetable.pte_lockptr(pmd)


def pfn_pte(pfn, prot):
    return pagetable.pfn_pte(pfn, prot)


def pte_modify(pte, prot):
    return pagetable.pte_modify(pte, prot)


def pte_present(pte):
    return pagetable.pte_present(pte)


def pte_file(pte):
    return pagetable.pte_file(pte)


def is_swap_pte(pte):
    return pagetable.is_swap_pte(pte)


def pte_pfn(pte):
    return pagetable.pte_pfn(pte)


def swp_entry(type, offset):
    return swapops.swp_entry(type, offset)


def swp_type(entry):
    return swapops.swp_type(entry)


def swp_offset(entry):
    return swapops.swp_offset(entry)


def pte_to_swp_entry(pte):
    return pagetable.pte_to_swp_entry(pte)


def swp_entry_to_pte(entry):
    return pagetable.swp_entry_to_pte(entry)


def make_migration_entry(page, write):
    return pagetable.make_migration_entry(page, write)


def make_migration_entry_read(entry):
    return pagetable.make_migration_entry_read(entry)


def is_migration_entry(entry):
    return pagetable.is_migration_entry(entry)


def is_write_migration_entry(entry):
    return pagetable.is_write_migration_entry(entry)


def migration_entry_to_page(entry):
    return pagetable.migration_entry_to_page(entry)


def addr_end(address, end, mask):
    return pagetable.addr_end(address, end, mask)


def tlb_slot(task, address):
    return tlb.tlb_slot(task, address)


def tlb_tag(address):
    return tlb.tlb_tag(address)


def access_begin(me):
    tlb.access_begin(me)


def access_end(me):
    tlb.access_end(me)


def kernel_enter():
    freezer.kernel_enter()


def kernel_exit():
    freezer.kernel_exit()
