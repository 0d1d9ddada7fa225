"""Lines carry the time, and a log stays below its size without its writer knowing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from verst.runtime.run.log_lines import aside, set_aside, without_stamp

WRITER = """
import logging, os, sys
from verst.runtime.run.log_lines import stamp_output
stamp_output()
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
print("one", 1, end="")
print(" more")
print("two\\nthree\\n\\nfour", file=sys.stderr)
sys.__stdout__.write("five\\n")
os.write(1, b"from C\\n")
logging.info("said")
raise SystemError("at last")
"""


def test_each_line_that_python_writes_carries_the_time_once(tmp_path):
    log = tmp_path / "x.log"
    with log.open("wb") as out:
        subprocess.run(
            [sys.executable, "-c", WRITER], stdout=out, stderr=out, env={"PYTHONUNBUFFERED": "1"}, check=False
        )
    lines = log.read_text().splitlines()
    said = [without_stamp(line) for line in lines]
    assert said[:5] == ["one 1 more", "two", "three", "", "four"]
    assert said[5:8] == ["five", "from C", "INFO said"]
    assert said[-1] == "SystemError: at last"
    stamped = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", line)]
    assert len(stamped) == len(lines) - 1  # all but C's


def test_a_log_that_is_set_aside_loses_nothing_and_is_bounded(tmp_path):
    log = tmp_path / "x.log"
    with log.open("ab", buffering=0) as writer:
        for life in range(5):
            writer.write(f"life {life}\n".encode() * 20)
            assert set_aside(log, max_bytes=100, keep=2)
        writer.write(b"now\n")
        assert not set_aside(log, max_bytes=100, keep=2)
    assert log.read_text() == "now\n"
    assert aside(log, 1).read_text() == "life 4\n" * 20
    assert aside(log, 2).read_text() == "life 3\n" * 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]


def test_on_a_full_disk_the_log_stays_as_it_is(small_disk):
    small_disk.mount(256)
    log: Path = small_disk.path / "x.log"
    log.write_bytes(b"line\n" * 4000)
    small_disk.fill()
    with pytest.raises(OSError, match="No space left"):
        set_aside(log, max_bytes=100, keep=2)
    assert log.read_bytes() == b"line\n" * 4000
    assert not aside(log, 1).exists()


LIBRARY = """
import logging, sys
handler = logging.StreamHandler(sys.stderr)  # as transformers does when it is imported
logging.getLogger("library").addHandler(handler)
logging.getLogger("another").addHandler(logging.lastResort)
early = sys.stderr
from verst.runtime.run.log_lines import stamp_output
stamp_output()
logging.getLogger("library").warning("heard")
logging.getLogger("another").warning("heard too")
print("through the old stream", file=early, flush=True)
"""


def test_a_log_handler_that_was_there_before_goes_on(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=True)
    assert [without_stamp(line) for line in done.stderr.splitlines()] == [
        "heard",
        "heard too",
        "through the old stream",
    ]
    assert done.stderr.startswith("20"), "with the time"


PRINTERS = """
import os, sys, threading
from verst.runtime.run.log_lines import stamp_output
stamp_output()
def many(who):
    for number in range(500):
        print("process", os.getpid(), who, number, "x" * 60)
threads = [threading.Thread(target=many, args=(f"thread-{i}",)) for i in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_lines_of_threads_and_processes_with_one_log_arrive_whole(tmp_path):
    log = tmp_path / "x.log"
    with log.open("ab") as out:
        command = [sys.executable, "-c", PRINTERS]
        writers = [subprocess.Popen(command, stdout=out, stderr=out) for _ in range(4)]
        assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = [without_stamp(line) for line in log.read_text().splitlines()]
    whole = {line for line in lines if re.fullmatch(r"process \d+ thread-\d \d+ x{60}", line)}
    assert len(whole) == len(lines) == 4 * 4 * 500


def test_a_line_without_an_end_is_written_when_it_is_flushed_and_at_the_end(tmp_path):
    script = (
        "import os\nfrom verst.runtime.run.log_lines import stamp_output\nstamp_output()\n"
        "print('half', end='', flush=True); os.write(1, b'|'); print(' and half'); print('no end', end='')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [without_stamp(line) for line in done.stdout.splitlines()] == ["half| and half", "no end"]
