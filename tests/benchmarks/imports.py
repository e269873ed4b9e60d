"""Time of `import redflag_core` against `import nacl.signing, attrs` (fresh processes, interleaved)."""

import statistics
import subprocess
import sys
from collections.abc import Iterator

RUNS = 11
STATEMENTS = {
    "nothing": "pass",
    "nacl.signing, attrs": "import nacl.signing, attrs",
    "redflag_core": "import redflag_core",
    "redflag_core, a name of each part": "import redflag_core as r; [getattr(r, n) for n in r.__all__]",
}


def measure() -> Iterator[str]:
    """Medians and the ratio."""
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(RUNS):
        for name, statement in STATEMENTS.items():
            times[name].append(_seconds(statement))
    medians = {name: statistics.median(values) for name, values in times.items()}
    empty = medians["nothing"]
    for name, median in medians.items():
        yield f"{name:<36} {1000 * (median - empty):7.1f} ms over an empty process"
    floor = medians["nacl.signing, attrs"] - empty
    yield f"ratio: {(medians['redflag_core'] - empty) / floor:.2f} (to reach: 1.2)"


def _seconds(statement: str) -> float:
    # Measured inside, and by the CPU: the time to start Python is not ours, nor the other load of the machine.
    program = f"import time; a = time.process_time(); {statement}; print(time.process_time() - a)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
