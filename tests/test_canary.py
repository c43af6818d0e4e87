"""The steady clock, by which tests measure time limits: it stops while the machine stalls, and only then."""

import json
import signal
import subprocess
import sys
import time

import pytest

from unit import ROOT

# A program that the test pauses while it waits for a line on standard input. Then it prints the seconds that passed
# meanwhile, on the monotonic and on the steady clock.
PAUSED = """
import json, sys, time
from canary import steady
steady()
began, began_steady = time.monotonic(), steady()
print("begun", flush=True)
sys.stdin.readline()
print(json.dumps([time.monotonic() - began, steady() - began_steady]), flush=True)
"""


@pytest.mark.process
def test_a_pause_of_the_whole_process_does_not_count() -> None:
    command = [sys.executable, "-c", PAUSED]
    environment = {"PYTHONPATH": str(ROOT / "tests" / "support")}

    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)  # the pause that both clocks measure
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        real, steady = json.loads(process.stdout.readline())

    assert real >= 1
    assert steady < real - 0.8
