"""A sweep with fake cells, as a process that can be killed: prints what became of them as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgesparse.sweeping.engine import here, run_cells
from edgesparse.sweeping.grid import cells_of
from edgesparse.sweeping.spec import load_sweep
from edgesparse.sweeping.store import Store

if __name__ == "__main__":
    folder, seconds, slots = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    cells, _ = cells_of(load_sweep(folder / "sweep.yaml"))
    fake = (sys.executable, str(Path(__file__).with_name("fakecell.py")), str(folder / "log"), seconds)
    done = run_cells(cells, Store(folder / "out"), here(slots, fake))
    shares = sorted(result["density"] for result in done.results.values())
    print(json.dumps({"shares": shares, "kept": done.kept, "errors": list(done.errors.values())}))
