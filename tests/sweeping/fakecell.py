"""In place of a cell's process: notes its start in a log, takes its time, and answers; a job may ask for a crash."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from edgesparse.sweeping.cell import answering

LOG, SECONDS = Path(sys.argv[1]), float(sys.argv[2])

if __name__ == "__main__":
    with answering() as (job, answer):
        with LOG.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {job['recipe']['density']}\n")
        if job["recipe"]["density"] == 0.99:
            os.abort()
        time.sleep(SECONDS)
        answer({"result": {"density": job["recipe"]["density"], "shapes": job["shapes"]}})
