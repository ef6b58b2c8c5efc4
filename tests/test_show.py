# SPDX-License-Identifier: GPL-2.0-only
"""`shmkern show migrate`: a real migration in the order of the protocol, and docs/protocol.md
shows what it shows."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from shmkern import cli, command, direct_map, show

pytestmark = pytest.mark.timeout(60)

# Told to end, or all of its processes are, when the machine is there and is looked at for the first time.
TOLD = """
import os, signal, sys
from shmkern import cli, show
look = show.Stage.look
def look_and_be_told(stage):
    show.Stage.look = look
    {kill}(os.getpid(), {number})
    return look(stage)
show.Stage.look = look_and_be_told
sys.exit(cli.main(["show", "migrate"]))
"""
SHOW = [sys.executable, str(command.ENTRY), "show"]
MOVE = ["before", "isolate_lru_page", "get_new_page", "lock_page", "set_migration_pte", "set_migration_pte",
        "try_to_unmap", "migrate_page_copy", "remove_migration_pte", "remove_migration_pte", "unlock_page",
        "putback_lru_page", "lru_add_drain"]


@pytest.mark.parametrize("kill", ["os.kill", "os.killpg"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_show_that_is_told_to_end_leaves_nothing(number, kill):
    with subprocess.Popen([sys.executable, "-c", TOLD.format(kill=kill, number=int(number))], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        said = process.communicate(timeout=40)
    left = [name for name in direct_map.blocks() if name.startswith(f"{direct_map.PREFIX}{process.pid}-")]
    for name in left:
        (direct_map.SHM_DIR / name).unlink()
    assert (process.returncode, *said, left) == (128 + number, "", "", [])


def test_a_hangup_that_is_ignored_stays_so():
    """As under nohup."""
    program = ("import os, signal; from shmkern import command\nwith command.told_to_end():\n"
               "    os.kill(os.getpid(), signal.SIGHUP)\nprint('on')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40,
                          preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, "on\n"), done


@pytest.fixture(scope="module")
def steps():
    return show.steps_of()


def states(steps, column):
    """What a column shows, each state once."""
    seen = []
    for step in steps:
        text = ", ".join(step.state[column])
        if not seen or seen[-1] != text:
            seen.append(text)
    return seen


def test_each_step_of_the_protocol_is_shown_once_and_in_order(steps):
    assert [step.name for step in steps] == MOVE
    assert {step.pass_ for step in steps[1:]} == {1}


def test_ptes_lead_to_the_old_page_to_nothing_and_to_the_new_page(steps):
    for who in ("parent", "child"):
        assert states(steps, f"{who}'s PTE") == ["A, read-only", "migration entry of A", "B, read-only"]


def test_who_comes_after_the_copy_waits_and_who_comes_after_the_remapping_does_not(steps):
    assert states(steps, "parent") == ["", "waits: page lock of A", "has read B"]
    assert states(steps, "child") == ["", "has read B"]
    names = {step.name: step.state for step in steps}
    assert "count 2" in names["migrate_page_copy"]["page A"], "the waiter has a reference"
    assert "lock of A" in names["migrate_page_copy"]["mover holds"]
    assert names["putback_lru_page"]["page A"] == ("free",)


def test_page_table_locks_are_held_where_entries_change(steps):
    for step in steps:
        assert ("2 spinlocks" in step.state["mover holds"]) == step.name.endswith("_migration_pte")


def test_who_comes_before_the_copy_makes_a_pass_fail():
    steps = show.steps_of(busy=True)
    names = [step.name for step in steps]
    again = names.index("next pass")
    assert names[again - 1] == "-EAGAIN" and names[again:].count("putback_lru_page") == 1
    assert "count 2" in steps[names.index("try_to_unmap")].state["page A"]
    assert steps[again - 1].state["parent's PTE"] == ("A, read-only",) and steps[again - 1].state["page B"] == ("free",)
    assert states(steps, "parent") == ["", "waits: page lock of A", "has read A"]
    assert steps[-1].state["child's PTE"] == ("B, read-only",) and steps[-1].pass_ == 2


def test_the_docs_show_what_a_real_run_shows(steps):
    docs = (Path(show.__file__).parent.parent / "docs" / "protocol.md").read_text()
    shown = [re.sub(r"^ {4}", "", line) for line in docs.splitlines()]
    picture = show.picture(steps).splitlines()
    start = shown.index(picture[0])
    assert shown[start:start + len(picture)] == picture, "`shmkern show migrate --table` says otherwise"


def test_plain_text_where_there_is_no_terminal_and_colours_where_there_is():
    plain = subprocess.run([*SHOW, "migrate"], capture_output=True, text=True, timeout=50)
    assert plain.returncode == 0 and "\x1b" not in plain.stdout and not plain.stderr
    assert re.search(r"^\d+\. migrate_page_copy: ", plain.stdout, re.M)
    assert "  * parent        waits: page lock of A   (was -)\n" in plain.stdout
    seen, status = pexpect.run(" ".join([*SHOW, "migrate"]), withexitstatus=True, timeout=50,
                               env={"TERM": "xterm-256color"})
    assert status == 0 and b"\x1b[1" in seen and b"waits: page lock of A" in seen


def test_a_reader_that_goes_away_is_for_the_command_to_deal_with(steps):
    read_end, write_end = os.pipe()
    os.close(read_end)
    file = open(write_end, "w")
    with pytest.raises(BrokenPipeError):
        show.show(steps[0], 0, None, show.Console(file=file))
    with contextlib.suppress(BrokenPipeError):
        file.close()


def test_json_for_programs(capsys, tmp_path):
    assert cli.main(["show", "migrate", "--table", "--json", "-"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in steps] == MOVE
    assert steps[0]["changed"] == [] and "page B" in steps[2]["changed"]
    assert cli.main(["show", "migrate", "--table", "--json", str(tmp_path / "steps")]) == 0
    assert json.loads((tmp_path / "steps").read_text()) == steps
    assert capsys.readouterr().out.splitlines()[0].startswith("step ")


@pytest.mark.parametrize("args, words", [
    (["nonsense"], ["'nonsense' cannot be shown", "migrate"]), ([], ["migrate"]),
    (["migrate", "--nonsense"], ["--nonsense"]), (["migrate", "--json", "/nowhere/x"], ["/nowhere/x"])])
def test_what_cannot_be_shown_is_a_sentence(args, words, capsys):
    try:
        status = cli.main(["show", *args])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and said.out == "" and len(said.err.splitlines()) == 1
    assert all(word in said.err for word in words), said.err
