"""What is installed: the wheel's files, its requirements, imports without warnings, the public names."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib.metadata import packages_distributions, version
from pathlib import Path, PurePosixPath

import pytest
import yaml
from lowest import PYPROJECT, lowest

import superweight_ensembles as swe
from superweight_ensembles.storage import bundled_recipes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "superweight_ensembles"
BUILT_WITHOUT = ("onnx_cascade",)  # in the code of an exported folder, from that folder
BUILD = "from setuptools.build_meta import build_sdist, build_wheel; build_sdist('out'); build_wheel('out')"
# All modules in one process; and those that a public name leads to each as the first of the package, in processes that
# part once the libraries are imported.
IMPORT_ALL = """
import os, pkgutil, sys
from importlib import import_module
import superweight_ensembles as package
import lightning_fabric, matplotlib.pyplot, scipy, sklearn.datasets, timm, torchmetrics
failed = 0
for home in [room.name for room in pkgutil.iter_modules(package.__path__) if room.ispkg]:
    child = os.fork()
    if child == 0:
        try:
            import_module(f"{package.__name__}.{home}")
            os._exit(0)
        except BaseException as error:
            print(home, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    failed += os.waitpid(child, 0)[1] != 0
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    if not module.name.endswith(".__main__"):
        import_module(module.name)
sys.exit(failed > 0)
"""


def run(*command: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(content: dict) -> list[str]:
    about = content["project"]
    extras = about["optional-dependencies"].values()
    return [*content["build-system"]["requires"], *about["dependencies"], *(one for extra in extras for one in extra)]


def checked_in(*more: str) -> list[str]:
    listed = run("git", "ls-files", "-z", *more)
    if listed.returncode:
        pytest.skip(f"no git checkout: {listed.stderr.strip()}")
    return [entry for entry in listed.stdout.split("\0") if entry]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a wheel and a source archive, built of the files that a commit would hold."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools 77; {version('setuptools')} is installed")
    source = tmp_path_factory.mktemp("source")
    for name in checked_in("--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
            (source / name).chmod((ROOT / name).stat().st_mode & 0o755)  # another umask is no fault of the checkout
    made = run(sys.executable, "-c", BUILD, cwd=source)
    assert made.returncode == 0, made.stderr
    return source / "out"


def test_the_wheel_holds_the_package_and_the_recipes(built: Path) -> None:
    files = [
        PACKAGE / "py.typed",
        *(path for kind in ("py", "pyi", "html", "css") for path in PACKAGE.rglob(f"*.{kind}")),
    ]
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    expected |= {f"superweight_ensembles/recipes/{path.name}" for path in (ROOT / "recipes").iterdir()}
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        entries = wheel.infolist()
    names = {entry.filename for entry in entries}
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - about == expected
    assert {PurePosixPath(name).name for name in about} >= {"METADATA", "LICENSE", "entry_points.txt"}
    for entry in entries:
        path, mode = PurePosixPath(entry.filename), entry.external_attr >> 16
        assert not path.is_absolute() and ".." not in path.parts and "\\" not in entry.filename
        # The build tool gives its list of files 0664; installers write a list of their own.
        assert stat.S_ISREG(mode) and (stat.S_IMODE(mode) == 0o644 or path.name == "RECORD"), entry


def test_the_source_archive_holds_what_the_wheel_is_built_of(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {entry.name.partition("/")[2].split("/")[0] for entry in archive if entry.isfile()}
    made = {"PKG-INFO", "setup.cfg", "superweight_ensembles.egg-info"}
    assert names - made == {
        "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "recipes",
        "superweight_ensembles",
    }  # fmt: skip


def test_an_installed_wheel_finds_its_recipes(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    code = "from superweight_ensembles.storage import recipe_path; print(recipe_path('digits'))"
    found = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert found.stdout.strip() == str(tmp_path / "site" / "superweight_ensembles" / "recipes" / "digits.yaml")


def test_bundled_recipes_are_those_of_the_checkout() -> None:
    assert sorted(bundled_recipes().values()) == sorted((ROOT / "recipes").glob("*.yaml"))


def test_every_package_is_listed() -> None:
    listed = set(project()["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == there | {"superweight_ensembles.recipes"}


def test_requirements_are_bounded_and_tried_at_their_lower_bounds() -> None:
    own = re.compile(r"superweight-ensembles\[([a-z,]+)\]")
    bounded = [one for one in requirements(project()) if not own.fullmatch(one)]
    expected = set()
    for requirement in bounded:
        found = re.fullmatch(r"([A-Za-z0-9_-]+)(\[[a-z,]+\])?>=([\d.]+),<[\d.]+", requirement)
        assert found, requirement
        expected.add(f"{found[1]}=={found[3]}")
    assert set(lowest(PYPROJECT.read_text(encoding="utf-8"))) == expected
    names = [line.partition("==")[0] for line in expected]
    assert len(set(names)) == len(names)  # a package that stands twice has one lower bound


def test_extras_refer_to_extras() -> None:
    extras = project()["project"]["optional-dependencies"]
    assert {"all", "bench", "dev", "docs", "export", "tensorboard", "track"} == set(extras)
    for group in extras.values():
        for one in group:
            if one.startswith("superweight-ensembles"):
                assert set(one.partition("[")[2].rstrip("]").split(",")) < set(extras)


def test_a_wheel_says_who_made_it_and_what_it_comes_from(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        said = message_from_bytes(wheel.read(name))
    assert said["Author"] == "The superweight-ensembles developers" and "@" not in said["Author"]
    assert {url.split("/")[-1] for url in said.get_all("Project-URL", [])} == {"2312.01274", "2006.10598", "2501.15889"}
    assert "Programming Language :: Python :: 3.13" in said.get_all("Classifier", [])


def test_the_citation_is_of_this_version() -> None:
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= about.keys()  # that the format asks for
    assert about["version"] == project()["project"]["version"] and about["license"] == project()["project"]["license"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for work in about["references"]:
        assert {"type", "title", "authors"} <= work.keys() and work["url"] in readme


def test_the_workflow_runs_what_is_there() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make build"] and (ROOT / ".ci" / "run").is_file()
    tested = jobs["test"]["strategy"]["matrix"]["python"]
    said = [one.rpartition(" ")[2] for one in project()["project"]["classifiers"] if "Python :: 3." in one]
    assert tested == [said[0], said[-1]] and project()["project"]["requires-python"] == f">={said[0]}"


def test_what_is_imported_is_required() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split("[<>[]", name)[0]).lower()

    required = {plain(requirement) for requirement in requirements(project())}
    known = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing_only = {
            inner for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }  # fmt: skip
        for node in ast.walk(tree):
            if node in typing_only or not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for root in {name.split(".")[0] for name in names}:
                if root not in {*sys.stdlib_module_names, "superweight_ensembles", *BUILT_WITHOUT}:
                    assert {plain(name) for name in known.get(root, [root])} & required, f"{path}: {root}"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not there")
def test_imports_warn_of_nothing() -> None:
    done = run(sys.executable, "-W", "error", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_every_room_is_imported_without_optional_packages() -> None:
    extras = project()["project"]["optional-dependencies"]
    wanted = [re.split("[<>=]", one)[0] for name in ("bench", "export", "tensorboard", "track") for one in extras[name]]
    optional = [name.replace("-", "_") for name in wanted]
    assert "onnxruntime" in optional
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    imports = "".join(f"import superweight_ensembles.{room}; " for room in rooms)
    done = run(sys.executable, "-c", f"import sys; sys.modules.update(dict.fromkeys({optional})); {imports}")
    assert done.returncode == 0, done.stderr


def test_the_command_line_tells_its_options_without_pytorch() -> None:
    told = "import sys, superweight_ensembles.__main__; sys.exit('torch' in sys.modules)"
    assert run(sys.executable, "-W", "error", "-c", told).returncode == 0


def test_public_names() -> None:
    assert {"SuperWeightEnsemble", "plan_sharing", "train", "evaluate", "adaptive"} <= set(swe.__all__)
    assert set(swe.__all__) <= set(dir(swe))
    for name in swe.__all__:
        assert getattr(swe, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="trian"):
        swe.trian  # noqa: B018


def test_rooms_are_entered_by_their_faces() -> None:
    """What a room hands on stands in its ``__init__``; nobody else imports the files behind it."""
    rooms = [path.parent.relative_to(ROOT).parts for path in PACKAGE.rglob("__init__.py")]
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        own = path.parent.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE.name):
                parts = tuple(node.module.split("."))
                room = max((room for room in rooms if parts[: len(room)] == room), key=len)
                inside = own[: len(room)] == room and room != (PACKAGE.name,)
                assert inside or parts == room or parts == (PACKAGE.name, "errors"), f"{path}: {node.module}"


def test_no_two_files_of_one_name() -> None:
    names = [path.stem for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert len(set(names)) == len(names)


def test_checked_in_files_are_small_and_not_executable() -> None:
    for entry in checked_in("--stage"):
        mode, name = entry.split()[0], entry.partition("\t")[2]
        assert mode == ("100755" if name == ".ci/run" else "100644"), name
        assert not (ROOT / name).exists() or (ROOT / name).stat().st_size < 2**19, name
