# SPDX-License-Identifier: GPL-2.0-only
"""The museum: bugs that Linux's migration code had, or that its comments say it would have.

Each is a file museum/NAME.patch: lines `Field: text` that say what it is, from where, which
scenario shows it and as what kinds of failure; what it did to users; and a patch of today's
source. A piece is built in a copy of the tree, the explorer's flavour of what the patch touches
only, and its scenario must fail there in one of these ways; and must hold without the patch.

May import: search, room.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from shmkern.command import told_to_end, write_json
from shmkern.errors import UsageError

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
MUSEUM = HERE / "museum"
FIELDS = ("Title", "Linux", "Scenario", "Symptom")
COPIED = ("setup.py", "build_helper.py", "pxd_declarations.py", "struct_uses.py", "translator.py", "pyproject.toml", "README.md")


@dataclass
class Piece:
    """One bug.  `symptoms` are the kinds of failure that may show it."""
    name: str
    title: str
    linux: str
    scenario: str
    symptoms: list
    text: str


@dataclass
class Verdict:
    """What exploring a piece gave.  `found` is the kind of failure, or None."""
    name: str
    scenario: str
    found: str | None
    text: str
    schedules: int
    build_seconds: float
    seconds: float
    right: bool


def read_piece(path):
    """The Piece in a file.  ValueError when it lacks a field."""
    text = path.read_text()
    head, _, rest = text.partition("\n\n")
    found = {name: " ".join(value.split()) for name, value in re.findall(r"^(\w[\w-]*): ((?:.*\n?(?=\s))*.*)$", head, re.M)}
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise ValueError(f"{path.name} has no field {missing[0]}")
    return Piece(path.stem, found["Title"], found["Linux"], found["Scenario"],
                 [kind.strip() for kind in found["Symptom"].split(",")], rest.partition("\n--- ")[0].strip())


def pieces(names=()):
    """All pieces, or those with the names."""
    found = {path.stem: path for path in sorted(MUSEUM.glob("*.patch"))}
    for name in names:
        if name not in found:
            raise UsageError(f"the museum has no {name!r}; it has {', '.join(found)}")
    return [read_piece(found[name]) for name in names or found]


def build(piece, tree):
    """Makes `tree` a copy of this one with the piece's patch in it, and compiles what it touches."""
    shutil.copytree(TREE / "shmkern", tree / "shmkern", ignore=shutil.ignore_patterns("__pycache__"))
    for other in tree.glob("shmkern/*.so"):
        other.unlink()
    for name in COPIED:
        shutil.copy2(TREE / name, tree)
    # What says that the rest is compiled already.
    (tree / "build" / "inplace").mkdir(parents=True)
    for done in (TREE / "build" / "inplace").glob("*.done"):
        shutil.copy2(done, tree / "build" / "inplace")
    command = ["patch", "--batch", "--forward", "--silent", "-p1", "-i", str(MUSEUM / f"{piece.name}.patch")]
    run(command, tree, f"the patch of {piece.name} no longer fits")
    run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], tree, f"{piece.name} cannot be compiled",
        SHMKERN_FLAVOURS="explore")


def run(command, tree, failure, **environment):
    """Runs a command in a tree.  UsageError when it fails."""
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=os.environ | environment)
    except FileNotFoundError as error:
        raise UsageError(f"{failure}: there is no {command[0]}") from error
    if done.returncode != 0:
        raise UsageError(f"{failure}: {(done.stdout + done.stderr).strip()[-500:]}")


def explore(tree, scenario, seconds=None):
    """Explores a scenario in a tree.  Its search.Result as plain data."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(tree / "shmkern" / "explore" / "__main__.py"), "explore", scenario,
                   "--json", "result"]
        if seconds is not None:
            command += ["--seconds", str(seconds)]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise UsageError(f"{scenario} cannot be explored: {(done.stdout + done.stderr).strip()[-500:]}")
        return json.loads((Path(scratch) / "result").read_text())[0]


def judge(piece):
    """Builds and explores one piece."""
    with tempfile.TemporaryDirectory(prefix="shmkern-museum-") as directory:
        began = time.monotonic()
        build(piece, Path(directory))
        built = time.monotonic()
        result = explore(Path(directory), piece.scenario)
    failure = result["failure"] or {"kind": None, "text": ""}
    return Verdict(piece.name, piece.scenario, failure["kind"], failure["text"], result["runs"], built - began,
                   result["seconds"], failure["kind"] in piece.symptoms)


def pieces_of(scenarios):
    """The pieces that some scenarios show."""
    need_tree()
    return [piece for piece in pieces() if piece.scenario in scenarios]


def need_tree():
    """UsageError where no piece can be built."""
    if not (TREE / "setup.py").exists():
        raise UsageError("the museum is built from shmkern's source tree, and this is an installed package")


def run_museum(names, jobs, path):
    """`shmkern explore --museum`: the exit status."""
    need_tree()
    verdicts, status = judge_all(pieces(names), jobs)
    write_json(path, [asdict(verdict) for verdict in verdicts])
    return status


@contextlib.contextmanager
def ending_descendants():
    """When this process is told to end within it, so are those that it has started, and theirs.  (Ctrl-C comes to
    all of them.)"""
    try:
        yield
    except SystemExit:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        raise


def judge_all(wanted, jobs, explored=frozenset()):
    """Judges pieces, and explores their scenarios without the patches unless that was done already.
    (verdicts, exit status)"""
    print(f"{'piece':<26}{'scenario':<18}{'schedules':>10}{'build s':>9}{'s':>7}  found", flush=True)
    verdicts = []
    try:
        with told_to_end(), ThreadPoolExecutor(jobs) as pool, ending_descendants():
            for verdict in pool.map(judge, wanted):
                verdicts.append(verdict)
                found = verdict.found or "NOTHING"
                print(f"{verdict.name:<26}{verdict.scenario:<18}{verdict.schedules:>10,}{verdict.build_seconds:>9.1f}"
                      f"{verdict.seconds:>7.1f}  {found}{'' if verdict.right else '  WRONG'}", flush=True)
            without = sorted({piece.scenario for piece in wanted} - explored)
            failures = [(name, result["failure"]) for name, result in
                        zip(without, pool.map(lambda name: explore(TREE, name), without)) if result["failure"]]
    except KeyboardInterrupt:
        print(f"interrupted; {len(verdicts)} of {len(wanted)} were looked for")
        return verdicts, 128 + signal.SIGINT
    for name, failure in failures:
        print(f"without a patch {name} fails as well: {failure['kind']}: {failure['text']}")
    wrong = sum(not verdict.right for verdict in verdicts)
    print(f"{len(verdicts) - wrong} of {len(verdicts)} found" +
          (f"; without the patches nothing fails ({len(without)} scenarios)" if without and not failures else ""))
    return verdicts, 1 if wrong or failures else 0
