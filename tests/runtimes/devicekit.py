"""What the tests of devices need: a small artifact for ARM, and a real sshd on loopback."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgesparse import pipeline
from edgesparse.artifacts.artifact import Artifact
from edgesparse.recipe import Recipe
from edgesparse.runtimes.device import DeviceRunner, open_device
from edgesparse.target import Target

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None, reason="needs qemu-user (make test installs it with apt-get)"
)
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
needs_sshd = pytest.mark.skipif(
    not Path(SSHD).exists() or os.getuid() != 0, reason="needs openssh-server and root (make test installs it)"
)


def small_model(path: Path) -> Path:
    """A 1x1 convolution, a depthwise and a strided one, all small."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        return onnx.numpy_helper.from_array(values, "w" + "x".join(map(str, shape)))

    weights = [weight(16, 8, 1, 1), weight(16, 1, 3, 3), weight(24, 16, 1, 1)]
    names = [item.name for item in weights]
    nodes = [
        onnx.helper.make_node("Conv", ["x", names[0]], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", names[1]], ["c"], group=16, pads=[1, 1, 1, 1], strides=[2, 2]),
        onnx.helper.make_node("Conv", ["c", names[2]], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info("x", 1, (1, 8, 14, 14))],
        [onnx.helper.make_tensor_value_info("y", 1, (1, 24, 7, 7))],
        weights,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def small_artifact(folder: Path, target: str, **changes: Any) -> Artifact:
    """The small model in an artifact for a target, or for one that is changed."""
    made = pipeline.compile_model(
        small_model(folder / "small.onnx"),
        target=replace(Target.parse(target), **changes),
        tune=False,
        output=folder / target,
        recipe=Recipe.from_dict({"pattern": "group:4x1", "density": 0.25}),
    )
    assert made is not None
    return made


@contextmanager
def sshd(folder: Path, path: str = "") -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """A server on loopback with keys of its own: `user@host:port`, the process, the client's configuration."""
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        # A home of its own: else the shell's start-up files there would change the path again.
        **({"SetEnv": f"PATH={path} HOME={folder}"} if path else {}),
    }
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    config = folder / "ssh_config"
    config.write_text(f"IdentityFile {folder / 'user'}\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"{getpass.getuser()}@127.0.0.1:{port}", server, config
    finally:
        server.kill()
        server.wait()


def check_emulated(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], target: str, folder: Path, slack: float
) -> None:
    """Compile a model, run it there, and compare with onnxruntime: to `slack` of the largest value, or of 1 if that is
    more; whole numbers exactly.
    """
    onnx.save(model, folder / "model.onnx")
    made = pipeline.compile_model(
        folder / "model.onnx", target=Target.parse(target), output=folder / "artifact", tune=False
    )
    assert made is not None
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    with open_device("qemu", made) as device:
        found = DeviceRunner(device, timeout=600).run(feeds)
    for value, expected in zip(model.graph.output, wanted, strict=True):
        exact = expected.astype(np.float64)
        most = float(np.abs(exact[np.isfinite(exact)]).max(initial=1.0))
        atol = 0.0 if expected.dtype.kind in "biu" else slack * most
        np.testing.assert_allclose(found[value.name].astype(np.float64), exact, rtol=0, atol=atol)
