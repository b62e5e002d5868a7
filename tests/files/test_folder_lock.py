"""One folder, one writer."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from diffux2ct.errors import UserError
from diffux2ct.files.folder_lock import only_writer

HOLD = """
import sys
from pathlib import Path
from diffux2ct.files.folder_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(folder, code: str = HOLD) -> subprocess.Popen:
    """A process that holds the lock, if it gets it, until its standard input ends."""
    command = [sys.executable, "-c", code, str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def hold(folder) -> subprocess.Popen:
    process = start(folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def is_free(folder) -> bool:
    try:
        with only_writer(folder):
            return True
    except UserError as error:
        return not re.fullmatch(
            rf"{folder}: in use by another process \(.*\); .*; if it has ended, remove .*", str(error)
        )


def test_the_second_writer_is_refused_in_one_line_and_nothing_is_left(tmp_path):
    with only_writer(tmp_path / "run"):
        assert not is_free(tmp_path / "run")
        assert is_free(tmp_path / "other")
    assert is_free(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_by_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "run"):
        raise ZeroDivisionError
    assert is_free(tmp_path / "run")


def test_a_process_of_another_name_holds_the_folder_until_it_ends(tmp_path):
    process = hold(tmp_path / "run")
    assert not is_free(tmp_path / "run")
    process.send_signal(signal.SIGSTOP)
    assert not is_free(tmp_path / "run")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) != []  # kill -9 releases nothing
    assert is_free(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def change(lock, **entries) -> None:
    lock.write_text(json.dumps(json.loads(lock.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "age", "free"),
    [
        ({"start": "1"}, 0, True),  # an earlier process of the same number
        ({"boot": "before"}, 0, True),
        ({"host": "node17"}, 0, False),  # on another machine: its process is not seen from here
        ({"host": "node17"}, 400, True),  # and has shown no sign of life
        ({"table": "pid:[1]"}, 0, False),  # in another container
        ({"table": "pid:[1]"}, 400, True),
        ({}, 400, False),
    ],
)
def test_stale_locks_are_recognised(tmp_path, entries, age, free):
    process = hold(tmp_path / "run")
    try:
        lock = tmp_path / ".lock-run"
        change(lock, **entries)
        os.utime(lock, (time.time() - age, time.time() - age))
        assert is_free(tmp_path / "run") == free
    finally:
        process.kill()
        process.wait()


def test_a_lock_without_contents_is_of_nobody_after_a_while(tmp_path):
    lock = tmp_path / ".lock-run"
    lock.write_text("")
    assert not is_free(tmp_path / "run")
    os.utime(lock, (time.time() - 400, time.time() - 400))
    assert is_free(tmp_path / "run")


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_start_at_once_one_gets_it(tmp_path, links):
    """Also where they all meet a stale lock, and on a disk without hard links."""
    stale = {"pid": 1, "start": "0", "host": socket.gethostname(), "boot": "before"}
    (tmp_path / ".lock-run").write_text(json.dumps(stale))
    code = HOLD if links else "import os\ndel os.link\ndef refuse(*_): raise OSError\nos.link = refuse\n" + HOLD
    starts = [start(tmp_path / "run", code) for _ in range(5)]
    while sum(process.poll() is None for process in starts) > 1:
        time.sleep(0.05)
    shown = [process.communicate()[0] for process in starts]
    assert sorted(shown) == ["", "", "", "", "held\n"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"'])
def test_what_is_no_record_of_a_process_is_one_line(tmp_path, text):
    (tmp_path / ".lock-run").write_text(text)
    assert not is_free(tmp_path / "run")


@pytest.mark.parametrize(
    "make", [lambda lock: lock.mkdir(), lambda lock: lock.symlink_to("gone"), lambda lock: lock.symlink_to(lock)]
)
def test_what_is_no_lock_is_named_and_not_waited_for(tmp_path, make):
    make(tmp_path / ".lock-run")
    with (
        pytest.raises(UserError, match=r"\.lock-run: not a lock but a folder, link or device; remove it"),
        only_writer(tmp_path / "run"),
    ):
        pass


def test_all_names_of_a_folder_have_one_lock(tmp_path):
    (tmp_path / "disk/run").mkdir(parents=True)
    (tmp_path / "run").symlink_to("disk/run")
    with only_writer(tmp_path / "run"):
        assert not is_free(tmp_path / "disk/run")
    assert is_free(tmp_path / "disk/run")


def test_a_lock_that_another_took_over_stays(tmp_path):
    with only_writer(tmp_path / "run"):
        change(tmp_path / ".lock-run", pid=1)
    assert (tmp_path / ".lock-run").exists()
