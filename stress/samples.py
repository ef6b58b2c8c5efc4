# SPDX-License-Identifier: GPL-2.0-only
"""The samples of a run, in a SQLite file: written as they come, read by the verdict, the report
and whoever likes.  The tables and their columns are described in docs/soak.md.

The file is in WAL mode and each sample is a transaction, so that whatever ends the run leaves
all earlier samples.  The process that writes also forks the machine's tasks.  They inherit the
connection and never use it: they leave with _exit, so nothing in them closes it.
"""
import json
import os
import sqlite3

from shmkern import direct_map

FORMAT = 2
MAGIC = b"SQLite format 3\0"
# KiB of pages that SQLite keeps; its default of 2 MiB fills up slowly, which looks like a leak.
CACHE_KIB = 256
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE session (number INTEGER PRIMARY KEY, began TEXT, os_pid INTEGER, start_time INTEGER, revision TEXT,
    host TEXT, command TEXT, ended TEXT);
CREATE TABLE turn (number INTEGER PRIMARY KEY, session INTEGER, scenario TEXT, options TEXT, seed INTEGER, began REAL,
    seconds REAL, state TEXT, result TEXT);
CREATE TABLE sample (number INTEGER PRIMARY KEY, turn INTEGER, phase TEXT, t REAL, wall REAL);
CREATE TABLE process (sample INTEGER, os_pid INTEGER, pid INTEGER, cpu INTEGER, name TEXT, rss INTEGER, shared INTEGER,
    fds INTEGER, host_files INTEGER, threads INTEGER, cpu_seconds REAL, voluntary INTEGER, involuntary INTEGER,
    futex_waits INTEGER, progress INTEGER, PRIMARY KEY (sample, os_pid)) WITHOUT ROWID;
CREATE TABLE counter (sample INTEGER, name TEXT, value INTEGER, PRIMARY KEY (sample, name)) WITHOUT ROWID;
CREATE TABLE node (sample INTEGER, node INTEGER, spanned INTEGER, free INTEGER, anon INTEGER, file INTEGER,
    pagetable INTEGER, PRIMARY KEY (sample, node)) WITHOUT ROWID;
CREATE TABLE slab (sample INTEGER, cache TEXT, objects INTEGER, in_use INTEGER,
    PRIMARY KEY (sample, cache)) WITHOUT ROWID;
CREATE TABLE latency (turn INTEGER, kind TEXT, bucket INTEGER, count INTEGER,
    PRIMARY KEY (turn, kind, bucket)) WITHOUT ROWID;
CREATE TABLE pause (turn INTEGER, t REAL, what TEXT, seconds REAL);
CREATE TABLE finding (number INTEGER PRIMARY KEY, turn INTEGER, kind TEXT, who TEXT, text TEXT);
CREATE INDEX sample_of_turn ON sample (turn);
"""


class SamplesError(Exception):
    """The file cannot be used; the text is one sentence."""


class Samples:
    """A file of samples, open.  `path` may be ":memory:".  Every method raises SamplesError."""

    def __init__(self, path, connection):
        self.path, self._connection = path, connection

    @classmethod
    def create(cls, path, **meta):
        """A new file.  `meta` is what a resumed run has to know."""
        path = str(path)
        if path != ":memory:" and os.path.lexists(path):
            raise SamplesError(f"{path} exists; --resume {path} goes on with it")
        samples = cls._connect(path, f"file:{path}" if path != ":memory:" else path)
        with samples.writing() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.executemany("INSERT INTO meta VALUES (?, ?)",
                           [(key, json.dumps(value)) for key, value in {"format": FORMAT, **meta}.items()])
        return samples

    @classmethod
    def open(cls, path):
        """A file that an earlier run wrote."""
        try:
            with open(path, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise SamplesError(f"{path} is no file of samples")
        except OSError as error:
            raise SamplesError(f"there is no file of samples {path}: {error.strerror}") from None
        samples = cls._connect(path, f"file:{path}?mode=rw")
        try:
            known = samples.meta().get("format")
        except SamplesError:
            known = None
        if known != FORMAT:
            samples.close()
            raise SamplesError(f"{path} is no file of samples" + (f" of this version, but of {known}" if known else ""))
        return samples

    @classmethod
    def _connect(cls, path, uri):
        try:
            connection = sqlite3.connect(uri, uri=uri != ":memory:", isolation_level=None)
            samples = cls(path, connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        except sqlite3.Error as error:
            raise SamplesError(f"the samples cannot be written to {path}: {error}") from None
        return samples

    def writing(self):
        """A transaction: `with samples.writing() as db:` and db.execute() in it."""
        return _Transaction(self)

    def rows(self, query, *values):
        """The rows of a query."""
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise SamplesError(f"the samples cannot be read from {self.path}: {error}") from None

    def meta(self):
        """What the run was begun with."""
        return {key: json.loads(value) for key, value in self.rows("SELECT key, value FROM meta")}

    def user(self):
        """The pid of the process that writes to the file, if one does."""
        for os_pid, start in self.rows("SELECT os_pid, start_time FROM session WHERE ended IS NULL"):
            if not direct_map.process_gone(os_pid, start):
                return os_pid
        return None

    def elapsed(self):
        """Seconds of the run that are in the file."""
        return self.rows("SELECT coalesce(max(t), 0) FROM sample")[0][0]

    def close(self):
        """Closes the file; what is still in the WAL goes to it, if there is room."""
        self._connection.close()


class _Transaction:
    """All of it is written, or nothing and SamplesError."""

    def __init__(self, samples):
        self.samples, self.db = samples, samples._connection

    def __enter__(self):
        self._do("BEGIN IMMEDIATE")
        return self.db

    def __exit__(self, kind, error, _traceback):
        if kind is None:
            try:
                return self._do("COMMIT")
            except SamplesError:
                self._roll_back()
                raise
        self._roll_back()
        if issubclass(kind, sqlite3.Error):
            raise SamplesError(f"the samples cannot be written to {self.samples.path}: {error}") from None

    def _do(self, statement):
        try:
            self.db.execute(statement)
        except sqlite3.Error as error:
            raise SamplesError(f"the samples cannot be written to {self.samples.path}: {error}") from None

    def _roll_back(self):
        # SQLite has done so itself when the disk is full.
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
