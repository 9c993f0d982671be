"""Reads damaged and hostile data files, and prints a line of JSON for each: how it ended, and the memory it took.

python -m tests.fuzz.reading FOLDER SEEDS
"""

import json
import re
import resource
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from core.data import Data, load
from core.errors import HanseError
from tests.fuzz.files import READERS, Case, case_of, variants, write_good
from tests.fuzz.strangers import hostile


def use(data: Data) -> None:
    """Takes some rows of each split."""
    for examples in data.splits.values():
        examples.take(examples.addresses(0, None)[:4])


def peak_mb() -> int:
    """The most memory that this process has had: the system counts that of the parent in."""
    status = Path("/proc/self/status")
    kilobytes = re.search(r"VmHWM:\s+(\d+)", status.read_text() if status.exists() else "")
    return (int(kilobytes[1]) if kilobytes else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) >> 10


def outcome(case: Case) -> dict[str, Any]:
    """What reading ends with: a traceback if it is no error of ours."""
    found: dict[str, Any] = {"case": case.name, "said": [], "codes": [], "traceback": "", "read": 0}
    for target in case.targets:
        try:
            use(load(case.config, target))
            found["read"] += 1
        except HanseError as error:
            found["said"].append(str(error))
            found["codes"].append(error.exit_code)
        except Exception:  # noqa: BLE001 - what is no error of ours is what is looked for
            found["traceback"] = traceback.format_exc()
    return found


def main() -> None:
    folder, seeds = Path(sys.argv[1]), int(sys.argv[2])
    write_good(folder)
    warnings.simplefilter("error")  # what a library writes to the terminal is no line of ours
    for name in READERS:  # what the libraries take once
        outcome(case_of(name, folder))
    idle = peak_mb()
    (folder / "strangers").mkdir()
    for cases in (hostile(folder / "strangers"), variants(folder, seeds)):
        for case in cases:
            print(json.dumps({"reads": case.name}), flush=True)  # the last such line names what never ended
            print(json.dumps({**outcome(case), "above": peak_mb() - idle}), flush=True)


if __name__ == "__main__":
    main()
