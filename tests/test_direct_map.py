# SPDX-License-Identifier: GPL-2.0-only
"""The block: one address in every process, refused where it does not fit, and never a bare
SIGBUS when the host runs out."""
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import shmkern
from shmkern import direct_map, layout
from shmkern.layout import constants as C

pytestmark = pytest.mark.timeout(60)

PAGE = C["PAGE_SIZE"]


def python(program, *arguments):
    """Runs a program in a Python that has nothing to do with this one."""
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], text=True, capture_output=True,
                          timeout=40, cwd=Path(shmkern.__file__).parent.parent)


ATTACH = """
import sys
from shmkern import direct_map, errors, layout
try:
    block = direct_map.attach(sys.argv[1], writable=sys.argv[2] == "True")
except errors.BootError as error:
    sys.exit(f"refused: {error}")
"""


def attach(name, program="", *arguments, writable=False):
    """Attaches to a block in an unrelated process and runs a program there."""
    return python(ATTACH + program, name, writable, *arguments)


# ---- attaching ----------------------------------------------------------------

def test_unrelated_process_attaches_by_name_and_sees_the_same_at_the_same_address(machine, until):
    machine.spawn(lambda task: (task.store(task.mmap(PAGE), b"hello from a task"), time.sleep(30)))
    kernel = layout.kernel()
    frames = layout.view("u8", kernel.frames_base, kernel.max_pfn * PAGE).reshape(-1, PAGE)

    def find():
        return np.flatnonzero((frames[:, :17] == list(b"hello from a task")).all(axis=1))
    until(lambda: find().size)
    seen = attach(machine.name, """
import numpy as np
kernel = layout.kernel()
print(kernel.address, kernel.mem_map, kernel.nr_nodes, kernel.frames_per_node, block.header.supervisor_pid)
print(layout.view("u8", kernel.frames_base + int(sys.argv[3]) * 4096, 17).tobytes().decode())
""", find()[0])
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout.splitlines() == [
        f"{kernel.address} {kernel.mem_map} {kernel.nr_nodes} {kernel.frames_per_node} {os.getpid()}",
        "hello from a task"]


def test_attached_process_outlives_nothing_and_ends_nothing(machine, run):
    """Its end leaves the block where it is."""
    assert attach(machine.name, "block.close()").returncode == 0
    assert attach(machine.name).returncode == 0
    assert run(lambda task: task.load(task.mmap(PAGE), 1)) == bytes(1)
    assert machine.name in direct_map.blocks()


def test_read_only_attachment_cannot_write(machine):
    write = "layout.header().panic_pid = 77; print('written')"
    refused = attach(machine.name, write)
    assert refused.returncode == -signal.SIGSEGV and "written" not in refused.stdout
    assert layout.header().panic_pid == 0
    assert attach(machine.name, write, writable=True).stdout == "written\n"
    assert layout.header().panic_pid == 77


@pytest.mark.parametrize("field, change, sentence", [
    ("magic", 1, "is not a machine"),
    ("layout_hash", 1, "was made by another build of shmkern"),
    ("base", PAGE, "was made by another build of shmkern"),
    ("size", PAGE, "is damaged: it says it has "),
])
def test_block_with_a_header_that_does_not_fit_is_refused(machine, field, change, sentence):
    header = layout.header()
    good = header[field]
    header[field] = good ^ change
    refused = attach(machine.name)
    header[field] = good
    assert refused.returncode == 1 and refused.stderr.startswith(f"refused: {machine.name} {sentence}")
    assert attach(machine.name).returncode == 0


@pytest.mark.parametrize("name", ["shmkern-none", "../etc/passwd", "/etc/passwd", ""])
def test_name_that_is_no_block_is_refused(name):
    with pytest.raises(shmkern.BootError, match="there is no machine|is not a machine"):
        direct_map.attach(name)


@pytest.mark.parametrize("content", [b"", b"short", bytes(8192)])
def test_file_that_is_no_block_is_refused_and_not_listed(content):
    path = direct_map.SHM_DIR / f"{direct_map.PREFIX}{os.getpid()}-test"
    path.write_bytes(content)
    try:
        with pytest.raises(shmkern.BootError, match=f"{path.name} is not a machine"):
            direct_map.attach(path.name)
        assert path.name not in direct_map.blocks()
    finally:
        path.unlink()


def test_process_can_be_part_of_one_machine_only(machine, boot, run):
    refusal = "A process can be part of one machine at a time"
    for second in (lambda: boot(), lambda: direct_map.attach(machine.name)):
        with pytest.raises(shmkern.BootError, match=refusal):
            second()
    # The first is none the worse for it.
    assert run(lambda task: task.load(task.mmap(PAGE), 1)) == bytes(1)


def test_address_that_is_taken_is_said_to_be():
    taken = python("""
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
from shmkern import direct_map
print(libc.mmap(direct_map.BASE + 65536, 4096, 3, 0x100022, -1, 0) == direct_map.BASE + 65536)
import shmkern
try:
    shmkern.Machine(1, 64)
except shmkern.BootError as error:
    print(error)
print([name for name in direct_map.blocks() if f"-{__import__('os').getpid()}-" in name])
""")
    mapped, sentence, blocks = taken.stdout.splitlines()
    assert mapped == "True" and "cannot be mapped at 0x2000000000" in sentence and blocks == "[]"


def test_block_is_its_owners_alone(machine):
    assert (direct_map.SHM_DIR / machine.name).stat().st_mode & 0o777 == 0o600


# ---- sizes --------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    {"nodes": 0}, {"nodes": 65}, {"nodes": -1}, {"nodes": 1.5}, {"nodes": True}, {"nodes": "2"},
    {"nodes": float("nan")}, {"nodes": float("inf")}, {"nodes": None},
    {"frames_per_node": 0}, {"frames_per_node": 63}, {"frames_per_node": (1 << 22) + 1},
    {"frames_per_node": 1 << 70}, {"frames_per_node": 64.5},
    {"max_tasks": 0}, {"max_tasks": 2}, {"max_tasks": 1025},
    {"hung_task_timeout": 0}, {"hung_task_timeout": -1}, {"hung_task_timeout": float("nan")},
    {"hung_task_timeout": float("inf")},
], ids=str)
def test_size_out_of_range_is_a_value_error_that_names_it(options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}".replace("(", r"\(")):
        shmkern.Machine(**options)


@pytest.mark.parametrize("nodes, frames_per_node, max_tasks", [(1, 64, 3), (64, 64, 256), (3, 1000, 1024)])
def test_smallest_and_oddest_sizes_work(boot, nodes, frames_per_node, max_tasks):
    machine = boot(nodes, frames_per_node, max_tasks=max_tasks)
    assert machine.spawn(lambda task: task.load(task.mmap(PAGE), 3)).result(timeout=20) == bytes(3)


# ---- a host without room ------------------------------------------------------

def test_machine_larger_than_the_hosts_memory_is_refused(monkeypatch):
    """A sparse file would let it boot, and fall when it is used."""
    class Small:
        total = 5 << 20
    monkeypatch.setattr(direct_map.psutil, "virtual_memory", lambda: Small)
    with pytest.raises(shmkern.BootError, match=r"the machine needs \d+ MiB, the host has 5 MiB of memory"):
        shmkern.Machine(2, 1024)


def test_machine_larger_than_what_shm_has_left_is_refused(monkeypatch):
    room = os.statvfs(direct_map.SHM_DIR)

    class Small:
        f_frsize, f_bavail = room.f_frsize, (3 << 20) // room.f_frsize
    monkeypatch.setattr(direct_map.os, "statvfs", lambda path: Small)
    with pytest.raises(shmkern.BootError, match=r"the machine needs \d+ MiB in /dev/shm, which has 3 MiB left"):
        shmkern.Machine(2, 16384)


def test_host_without_shm_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path / "none")
    with pytest.raises(shmkern.BootError, match="none is needed for shared memory"):
        shmkern.Machine(1, 64)


def test_metadata_that_the_host_does_not_give_is_a_boot_error_that_leaves_nothing(monkeypatch):
    def full(fd, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(direct_map.os, "posix_fallocate", full)
        with pytest.raises(shmkern.BootError, match=r"/dev/shm does not give \d+ MiB: No space left on device"):
            shmkern.Machine(1, 64)
    name = f"{direct_map.PREFIX}{os.getpid()}-"
    assert not list(direct_map.SHM_DIR.glob(name + "*"))
    assert not any(name in open_file.path for open_file in psutil.Process().open_files())


def resident(kernel):
    """How many frames the host has memory for."""
    vector = np.zeros(kernel.max_pfn, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(kernel.frames_base), ctypes.c_size_t(kernel.max_pfn * PAGE),
                        ctypes.c_void_p(vector.ctypes.data)) == 0
    return int((vector & 1).sum())


def test_boot_of_a_million_frames_takes_less_than_a_second_and_touches_no_frame():
    """Of CPU time; what init has to do does not depend on the frames."""
    def boot():
        began = time.process_time()
        with shmkern.Machine(2, 1 << 19) as machine:
            took = time.process_time() - began
            machine.init.migrate_prep()
            header, kernel = layout.header(), layout.kernel()
            blocks = (direct_map.SHM_DIR / machine.name).stat().st_blocks * 512
            # The zero page and init's page directory; a host that uses huge pages gives 2 MiB each.
            assert resident(kernel) <= 2 * 512
            assert header.metadata_size <= blocks <= header.metadata_size + (4 << 20)
            assert header.size >= kernel.max_pfn * PAGE
            # Metadata is there for good, to its last byte.
            assert header.metadata_size >= kernel.slab_end - header.base
        return took
    # A busy host may spoil one.
    assert any(boot() < 1 for _ in range(3))


def fill_frames(task):
    """Touches every frame it can get."""
    va = task.mmap(600 * PAGE)
    for index in range(600):
        task.store(va + index * PAGE, b"x")


def test_frame_that_the_host_cannot_give_is_a_report_and_no_sigbus(boot, stops):
    """The object is cut short behind the machine's back, which to a task is the same."""
    machine = boot()
    kernel, header = layout.kernel(), layout.header()
    os.truncate(direct_map.SHM_DIR / machine.name, kernel.frames_base - header.base + 256 * PAGE)
    report = stops(machine, fill_frames, kind="host memory")
    assert "the host has no memory left for the machine's frames" in report
    assert "task 2 (fill_frames" in report


@pytest.fixture
def tiny_shm(tmp_path, monkeypatch):
    """A tmpfs of 24 MiB in the place of /dev/shm.  Only root can mount one; what it shows is
    shown without it by the test above."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", tmp_path],
                                           capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted without privileges")
    monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path)
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_shm_that_fills_up_after_boot_is_a_report_and_no_sigbus(tiny_shm, boot, stops):
    machine = boot(2, 1024)
    with open(tiny_shm / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(1 << 16))
    report = stops(machine, fill_frames, kind="host memory")
    assert "/dev/shm is full or the memory cgroup is at its limit" in report


def test_only_a_second_machine_is_told_of_one_machine_at_a_time():
    done = python("""
import resource
import shmkern
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    shmkern.Machine(2, 16384, max_tasks=256)
except shmkern.BootError as error:
    print(error)
""")
    assert "Cannot allocate memory" in done.stdout and "one machine" not in done.stdout, done


def test_shm_that_is_too_small_is_said_to_be(tiny_shm):
    with pytest.raises(shmkern.BootError, match=r"the machine needs \d+ MiB in .*, which has \d+ MiB left"):
        shmkern.Machine(2, 16384)
    assert list(tiny_shm.iterdir()) == []


def test_sigbus_that_has_nothing_to_do_with_the_block_kills_that_task_alone(run, tmp_path):
    (tmp_path / "file").write_bytes(bytes(PAGE))

    def program(task):
        with open(tmp_path / "file", "r+b") as file:
            memory = mmap.mmap(file.fileno(), PAGE)
            os.truncate(tmp_path / "file", 0)
            return memory[0]
    with pytest.raises(shmkern.TaskDied) as died:
        run(program)
    assert died.value.status == -signal.SIGBUS
    assert run(lambda task: task.load(task.mmap(PAGE), 1)) == bytes(1)
