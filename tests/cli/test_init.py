"""How threads wait: decided before torch is imported, so in processes of their own."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "environment", "policy"),
    [
        ([], {}, "None"),
        (["launcher=joblib"], {}, "PASSIVE"),
        ([], {"LOCAL_WORLD_SIZE": "1"}, "None"),
        ([], {"LOCAL_WORLD_SIZE": "2"}, "PASSIVE"),
        ([], {"LOCAL_WORLD_SIZE": "2", "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
    ],
)
def test_threads_sleep_only_where_our_processes_share_the_cores(arguments, environment, policy):
    code = "import os, diffux2ct.cli; print(os.environ.get('OMP_WAIT_POLICY'))"
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "LOCAL_WORLD_SIZE")}
    call = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(call, env=clean | environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == policy
