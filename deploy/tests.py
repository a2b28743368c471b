"""Run the tests in two processes: those that need a cluster, and beside them all others.

`python -m deploy.tests [pytest arguments]`; the exit code is 0 iff both are content. Each has one
thread for tensors: two teams of threads on the same cores destroy each other.
"""

import os
import subprocess
import sys
import tempfile

LOWEST = 19
"""What SOMA itself makes nice (training, comparing) must not starve beside the tests: all are."""
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def main(arguments: list[str]) -> int:
    """Show the others' progress as it comes, then what the cluster's tests said."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    environ = os.environ | QUIET
    os.nice(LOWEST)
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(
            [*pytest, "-m", "ray"], env=environ, stdout=told, stderr=subprocess.STDOUT
        ) as cluster,
    ):
        others = subprocess.run([*pytest, "-m", "not ray"], env=environ, check=False)
        cluster.wait()
        told.seek(0)
        sys.stdout.write(told.read())
    return others.returncode or cluster.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
