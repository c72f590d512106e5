"""A scaffold is a family at once: found, recognised, planned and exported, in the checkout and outside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from export import new_family
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.command.scaffold import main
from export.families import registry
from export.new_family import NewFamily, new_files, write
from export.pipeline import export, plan
from export.request import ExportRequest
from runtime_py.errors import PackageError, UsageError
from runtime_py.preprocess.processors import make_processor

NAME = "my-vlm"


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    """Families are looked for again before and after."""
    registry.families.cache_clear()
    yield
    registry.families.cache_clear()


def install(distribution: Path) -> None:
    """What installing leaves beside the package: a dist-info folder with the project's entry points."""
    import tomllib

    project = tomllib.loads((distribution / "pyproject.toml").read_text())["project"]
    info = distribution / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


@contextmanager
def family_outside(name: str, like: str, modules: Mapping[str, str], folder: Path) -> Iterator[str]:
    """A family in a distribution of its own, installed as long as this lasts: a scaffold with these modules in it.

    Args:
        modules: text by name, beside the scaffold's or in their place.
    """
    write(NewFamily(name, registry.families()[like], "org/x", outside=True), folder)
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)
    install(folder)
    registry.families.cache_clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder))
        patched.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)  # for processes that an export starts
        yield name
    for imported in [imported for imported in sys.modules if imported.partition(".")[0] == name]:
        del sys.modules[imported]
    registry.families.cache_clear()


def test_a_scaffold_lists_no_quantised_checkpoint_of_another_family() -> None:
    files = new_family.new_files(NewFamily(NAME, registry.families()["cogvlm2"], "org/x"))
    (table,) = (text for path, text in files.items() if path.endswith("published.toml"))
    assert "THUDM" not in table.partition("[common]")[0] and '"org/x" = "image-chat"' in table


def planned(folder: Path) -> ExportRequest:
    """Synthesize the family's tiny checkpoint, recognise and plan it."""
    checkpoint = synthesize(SynthesisRequest(NAME, "tiny", folder / "tiny", "", "float32")).folder
    assert registry.recognise(checkpoint).name == NAME
    request = ExportRequest(
        str(checkpoint), "cpu", precision="fp32", output=folder / "out", skip_verify=True, without_tokenizer=True
    )
    assert plan(request, None).file_bytes > 0
    return request


@pytest.mark.parametrize("like", ["minicpm-v", "awaker2.5-vl"])
@pytest.mark.usefixtures("fresh_registry")
def test_a_family_outside_is_found_by_its_entry_point(
    like: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distribution = tmp_path / "distribution"
    assert main([NAME, "--like", like, "--outside", str(distribution)]) == 0
    assert "pyproject.toml" in capsys.readouterr().out
    assert NAME not in registry.families()
    install(distribution)
    monkeypatch.syspath_prepend(str(distribution))
    registry.families.cache_clear()
    try:
        request = planned(tmp_path)
        if like == "minicpm-v":  # one export is enough; what differs between families comes before it
            made = json.loads((export(request, None) / "manifest.json").read_text())
            assert (made["family"], made["processor"]) == (NAME, "my_vlm")
            assert type(make_processor(made["processor"], made["runtime"], None)).__module__ == "my_vlm.processor"
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_vlm"]:
            del sys.modules[name]


@pytest.mark.usefixtures("fresh_registry")
def test_a_family_that_cannot_be_loaded_is_said_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nbroken = no_such_module:FAMILY\nnone = json:loads\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "minicpm-v" in registry.families()
    assert "'broken' cannot be loaded from no_such_module:FAMILY" in caplog.text
    assert "json:loads is no Family" in caplog.text


@pytest.mark.slow
def test_a_family_in_the_checkout_is_found_by_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    for package in ("export", "runtime_py", "targets"):
        left_out = shutil.ignore_patterns("checkpoints", "__pycache__", "*_test.py")
        shutil.copytree(new_family.ROOT / package, root / package, ignore=left_out)
    commands = (
        ["export.new_family", NAME, "--like", "omnilmm-12b"],
        ["export", "synthesize", "--model", NAME, "--size", "tiny", "--dtype", "float32", "-o", "tiny"],
        ["pytest", "-q", "export/families/my_vlm"],
    )
    for command in commands:
        done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    program = "from export.families.registry import recognise; from pathlib import Path; print(recognise(Path('tiny')).name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == NAME


@pytest.mark.parametrize("name", ["My-VLM", "1st", "a_b", "", "../x", "class", "minicpm-v", "awaker"])
def test_a_name_that_is_none_or_taken_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        NewFamily(name, registry.families()["minicpm-v"], "org/x")


@pytest.mark.parametrize("hub_id", ["org", "org/x y", "https://huggingface.co/org/x", 'org/x"', "org/x/y"])
def test_a_checkpoint_that_no_hub_has_is_refused(hub_id: str) -> None:
    with pytest.raises(UsageError, match="no name of a repository"):
        NewFamily(NAME, registry.families()["minicpm-v"], hub_id)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    new = NewFamily(NAME, registry.families()["wemm"], "org/x")
    (tmp_path / "docs" / "families").mkdir(parents=True)
    (tmp_path / "docs" / "families" / "my-vlm.md").write_text("mine")
    with pytest.raises(UsageError, match=r"my-vlm\.md is there already"):
        write(new, tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["my-vlm.md"]


@pytest.mark.parametrize("like", registry.families().values(), ids=lambda family: family.name)
@pytest.mark.parametrize("outside", [False, True])
def test_every_family_can_be_begun_from(like: registry.Family, outside: bool) -> None:
    files = new_files(NewFamily("my-vlm.2", like, "org/x", outside))
    for name, text in files.items():
        if name.endswith(".py"):
            compile(text, name, "exec")
    assert not [name for name, text in files.items() if str(new_family.ROOT) in text]


@pytest.mark.parametrize("like", registry.families().values(), ids=lambda family: family.name)
def test_a_scaffold_passes_ruff(like: registry.Family, tmp_path: Path) -> None:
    """As the checkout's own files do, so that what a researcher changes is all that there is to correct."""
    write(NewFamily("my-vlm.2", like, "org/x"), tmp_path)
    config = ["--config", str(new_family.ROOT / "pyproject.toml")]
    config += ["--config", f"src = {json.dumps([str(tmp_path), str(new_family.ROOT)])}"]
    for verb in (["check", "--output-format", "concise"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *verb, "--no-cache", *config, "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_what_is_said_of_the_other_family_keeps_its_name() -> None:
    text = new_files(NewFamily(NAME, registry.families()["wemm"], "org/x"))["export/families/my_vlm/family.py"]
    assert "class MyVlm(Family):" in text and "FAMILY = MyVlm()" in text and "WeMM 1.2 carries a perceiver" in text


def test_a_manifest_names_only_processors_that_are_installed() -> None:
    for name in ("os", "json.decoder", "../processors", "base", ""):
        with pytest.raises(PackageError, match="names the processor"):
            make_processor(name, {}, None)
