# SPDX-License-Identifier: GPL-2.0-only
"""`shmkern top` on a terminal: the machine, its nodes, its tasks and its hottest locks, with
keys to sort and filter, and to open one task or one page."""
import asyncio
import signal

from textual.app import App
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from shmkern import direct_map, top

SHORTEST, LONGEST = 0.25, 60.0
COLUMNS = ["pid", "name", "cpu", "os_pid", "pages", *top.TASK_RATES, "waits_ms", "waits_for"]
LOCKS_SHOWN = 4


class Details(ModalScreen):
    """One task or one page, kept up to date; any of Escape, Enter and q goes back."""

    BINDINGS = [Binding("escape,enter,q", "app.pop_screen", "back")]
    CSS = """
    Details { align: center middle; }
    Details VerticalScroll { width: 90%; height: 80%; border: round $accent; padding: 0 1; background: $surface; }
    """

    def __init__(self, lines):
        super().__init__()
        self._lines = lines
        # Held on to: a look may come when it is not in the tree of widgets yet, or not any more.
        self._text = Static(id="details", markup=False)

    def compose(self):
        with VerticalScroll():
            yield self._text
        yield Footer()

    def on_mount(self):
        self.refresh_details()

    def refresh_details(self):
        """Shows what it is now."""
        lines = self._lines()
        self._text.update("\n".join(lines) if lines is not None else "It is not there any more.")


class Tasks(DataTable):
    """The tasks, a row each."""

    BINDINGS = [Binding("enter", "select_cursor", "task")]


class TopScreen(App):
    """The screen.  run() returns True when the machine has ended, False when the user left."""

    BINDINGS = [Binding("q", "leave", "quit"),
                # Before whatever has the focus, which would copy text.
                Binding("ctrl+c", "leave", "quit", show=False, priority=True), Binding("s", "sort", "sort"), Binding("r", "reverse", "reverse"),
                Binding("slash", "ask('filter')", "filter", key_display="/"),
                Binding("p", "ask('page')", "page"), Binding("plus", "interval(2.0)", "slower", key_display="+"),
                Binding("minus", "interval(0.5)", "faster", key_display="-")]
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary, #nodes, #locks { height: auto; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    #nodes { color: $text-muted; max-height: 10; }
    Tasks { height: 1fr; min-height: 3; }
    #ask { display: none; }
    """

    def __init__(self, interval):
        super().__init__()
        self._interval, self._timer = interval, None
        # The signal that has ended it, if one has.
        self.number = 0
        self._sampler, self._sample = top.Sampler(), None
        self._sort, self._reversed, self._filter, self._asked = "pid", False, "", None

    # ---- the widgets ----

    def compose(self):
        yield Static("one moment", id="summary", markup=False)
        yield Static(id="nodes", markup=False)
        yield Tasks(cursor_type="row")
        yield Static(id="locks", markup=False)
        yield Input(id="ask")
        yield Footer()

    def on_mount(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)
        self.query_one(Tasks).add_columns(*((self._heading(name), name) for name in COLUMNS))
        self.query_one(Tasks).focus()
        self.set_interval(1 / top.LOOKS_PER_SECOND, self._look)
        self._start_timer()
        self._tick()

    def _signalled(self, number):
        """Leaves the terminal as it was."""
        self.number = number
        self.exit(False)

    def _heading(self, column):
        mark = ("▲" if self._reversed else "▼") if column == self._sort else " "
        return f"{column.upper()}{mark}"

    def _start_timer(self):
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(self._interval, self._tick)

    def _look(self):
        self._sampler.look()

    def _tick(self):
        """Shows the next sample, or leaves when there will be none."""
        if direct_map.has_ended():
            self.exit(True)
            return
        self._sample = self._sampler.sample()
        self._show()
        if isinstance(self.screen, Details):
            self.screen.refresh_details()

    # ---- showing ----

    def _show(self):
        sample, main = self._sample, self.screen_stack[0]
        main.query_one("#summary").update("\n".join(top.summary(sample)))
        main.query_one("#nodes").update("\n".join(top.rows_text(sample["nodes"], list(top.NODE_COLUMNS))))
        locks = sample["locks"][:LOCKS_SHOWN]
        main.query_one("#locks").update("\n".join(
            ["waiting tasks, by what they wait for:",
             *(f"{lock['share']:7.2f}  {lock['lock']}, most for {lock['most']}" for lock in locks)]
            if locks else ["nobody waits"]))
        table = main.query_one(Tasks)
        chosen = self._chosen()
        rows = [row for row in sample["tasks"] if self._matches(row)]
        numbers = rows and not isinstance(rows[0][self._sort], str)
        # The largest number first, names from A on.
        rows.sort(key=lambda row: row[self._sort], reverse=bool(numbers and self._sort != "pid") != self._reversed)
        table.clear()
        for row in rows:
            table.add_row(*(top.cell(row, column) for column in COLUMNS), key=str(row["pid"]))
        pids = [row["pid"] for row in rows]
        if chosen in pids:
            table.move_cursor(row=pids.index(chosen), animate=False)

    def _matches(self, row):
        return self._filter.lower() in f"{row['pid']} {row['name']} {row['waits_for']}".lower()

    def _chosen(self):
        """The pid of the task that the cursor is on, or None."""
        table = self.screen_stack[0].query_one(Tasks)
        if not table.row_count:
            return None
        return int(table.coordinate_to_cell_key((table.cursor_row, 0)).row_key.value)

    # ---- keys ----

    def action_leave(self):
        self.exit(False)

    def action_sort(self):
        """By the next column."""
        self._set_sort(COLUMNS[(COLUMNS.index(self._sort) + 1) % len(COLUMNS)])

    def on_data_table_header_selected(self, event):
        self._set_sort(event.column_key.value)

    def _set_sort(self, column):
        self._sort = column
        self._relabel()

    def action_reverse(self):
        self._reversed = not self._reversed
        self._relabel()

    def _relabel(self):
        table = self.query_one(Tasks)
        for column in table.ordered_columns:
            column.label = type(column.label)(self._heading(column.key.value))
        if self._sample:
            self._show()

    def action_interval(self, factor):
        self._interval = min(max(self._interval * factor, SHORTEST), LONGEST)
        self._start_timer()
        self.notify(f"a look every {self._interval:g} s", timeout=2)

    def action_ask(self, what):
        """Asks for a filter or the number of a page."""
        self._asked = what
        ask = self.query_one("#ask")
        ask.placeholder = "tasks that have this in pid, name or wait" if what == "filter" else "number of a page"
        ask.value = self._filter if what == "filter" else ""
        ask.display = True
        ask.focus()

    def on_input_submitted(self, event):
        self._answer(event.value.strip())

    def on_key(self, event):
        if event.key == "escape" and self._asked:
            self._answer(None)

    def _answer(self, value):
        asked, self._asked = self._asked, None
        self.query_one("#ask").display = False
        self.query_one(Tasks).focus()
        if asked == "filter":
            self._filter = value or ""
            self._show()
        elif value is not None:
            pfn = int(value, 0) if value.removeprefix("0x").isalnum() and _is_number(value) else -1
            if top.page_lines(pfn) is None:
                self.notify(f"there is no page {value!r}", severity="warning")
            else:
                self.push_screen(Details(lambda: top.page_lines(pfn)))

    def on_data_table_row_selected(self, event):
        pid = int(event.row_key.value)
        self.push_screen(Details(lambda: top.task_lines(pid)))


def _is_number(text):
    try:
        int(text, 0)
    except ValueError:
        return False
    return True
