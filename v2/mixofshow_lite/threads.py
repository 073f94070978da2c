"""Threads that leave a busy core to others, on Linux.

OpenMP's threads wait for each other by spinning. Where another process takes one of two cores, each wait lasts as long
as that process is scheduled, and four pocket pictures take ten times as long as alone. Waiting passively costs a few
percent on an idle machine. The variables count only while the OpenMP library is being loaded: before torch.
"""

import os
import sys

PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def wait_passively() -> bool:
    """Ask OpenMP to wait without spinning; whatever the user has set stays. False if torch is loaded: too late."""
    if "torch" in sys.modules:
        return False
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
    return True
