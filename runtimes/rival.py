"""onnxruntime on the device, in turns with the bench program. This file is sent there and runs by itself.

    python3 rival.py ./bench bench --dense dense.bin ..

runs the program with a socket as its standard input. For every byte that comes through it, a load's number, that load
of the model is run once, and three numbers go back: nanoseconds by the clock, of the processor, and how often the
system took the core away. So both are timed in the same blocks, on the same cores. What the program told at the end is
printed, with the rival's error and loading time put in. Needs Python 3.8, numpy and onnxruntime.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

NAME = "onnxruntime"
#: Share of the device's memory that must be free for one more load.
LEAST_FREE = 0.25
MODEL, INPUT, EXPECT = "model.onnx", "sample.in", "sample.out"
#: onnxruntime's names of types to numpy's, where they differ.
TYPES = {"float": "float32", "double": "float64"}


def open_model() -> tuple[Any, Any]:
    """The model on one thread, inputs bound to the sample's: session and binding."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    with open(INPUT, "rb") as file:
        for port in session.get_inputs():
            kind = np.dtype(_type(port))
            size = kind.itemsize * int(np.prod(port.shape, dtype=np.int64))
            binding.bind_cpu_input(port.name, np.frombuffer(file.read(size), kind).reshape(port.shape))
    for port in session.get_outputs():
        binding.bind_output(port.name)
    return session, binding


def error_of(binding: Any) -> float:
    """The largest error of the outputs of the last run, relative to the largest expected value."""
    import numpy as np

    worst = 0.0
    with open(EXPECT, "rb") as file:
        for found in binding.copy_outputs_to_cpu():
            right = np.frombuffer(file.read(found.nbytes), found.dtype).reshape(found.shape)
            off = float(np.max(np.abs(found.astype(np.float64) - right.astype(np.float64)), initial=0.0))
            scale = float(np.max(np.abs(right.astype(np.float64)), initial=0.0))
            worst = max(worst, off / scale if scale else off)
    return worst


def serve(line: socket.socket, loads: list[tuple[Any, Any]]) -> None:
    """Run a load once for every byte that comes, its number, until the line is closed."""

    def preemptions() -> int:
        # onnxruntime with one thread runs in the caller's.
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw

    while True:
        wanted = line.recv(1)
        if not wanted:
            return
        session, binding = loads[wanted[0]]
        before, own, started = preemptions(), time.thread_time_ns(), time.perf_counter_ns()
        session.run_with_iobinding(binding)
        spent = time.perf_counter_ns() - started
        line.sendall(struct.pack("=QQQ", spent, time.thread_time_ns() - own, preemptions() - before))


def free_memory() -> float:
    """The share of the device's memory that is available; 1 where it does not tell."""
    try:
        with open("/proc/meminfo") as file:
            told = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in file)}
        return told["MemAvailable"] / told["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return 1.0


def main(command: list[str]) -> int:
    """Run the program against the model; its exit code, 128 + the signal that ended it as a shell has it."""
    options = {command[at]: command[at + 1] for at in range(2, len(command) - 1, 2)}
    if int(options.get("--timeout", "0")) > 0:
        signal.alarm(int(options["--timeout"]))
    info = subprocess.run(
        [command[0], "info", "--cores", options.get("--cores", "all")], stdout=subprocess.PIPE, check=True
    )
    os.sched_setaffinity(0, {core["core"] for core in json.loads(info.stdout)["machine"]["cores"]})
    started = time.perf_counter_ns()
    loads = [open_model()]
    load_ns = time.perf_counter_ns() - started
    while len(loads) < int(options.get("--loads", "1")) and free_memory() > LEAST_FREE:
        loads.append(open_model())
    if "--loads" in options:
        command = [*command, "--loads", str(len(loads))]  # of two, the last one holds
    ours, theirs = socket.socketpair()
    # Into a file: nobody empties a pipe while the model runs.
    with tempfile.TemporaryFile(dir=".") as out:
        with ours, subprocess.Popen([*command, "--rival", NAME], stdin=theirs.fileno(), stdout=out) as program:
            theirs.close()
            try:
                serve(ours, loads)
            finally:
                ours.close()
        code = int(program.returncode)
        if code != 0:
            return code if code > 0 else 128 - code
        out.seek(0)
        told = json.load(out)
    told["forms"][NAME].update(error=error_of(loads[0][1]), load_ns=load_ns, layers=[])
    json.dump(told, sys.stdout)
    return 0


def _type(port: Any) -> str:
    name = str(port.type)[len("tensor(") : -1]
    return TYPES.get(name, name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
