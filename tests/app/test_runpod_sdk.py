"""RunPod's SDK as the worker imports it, in a process of its own."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, subprocess
started = []
sys.addaudithook(lambda event, args: started.append(event) if event in ("subprocess.Popen", "os.posix_spawn") else None)
from worker.app.runpod_sdk import import_sdk
runpod = import_sdk()
from runpod.serverless.utils import rp_debugger
assert runpod.serverless.start, started
assert not started, started
assert not {"cpuinfo", "paramiko", "cryptography", "nacl"} & sys.modules.keys()
print(rp_debugger.PROCESSOR)
"""


def test_the_import_starts_no_other_program_and_still_knows_the_processor():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    assert done.stdout.strip() in names[0] if names else done.stdout.strip()
