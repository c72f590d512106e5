"""A model repository around a package: complete, deterministic, its files held against their readers' schemas."""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from export.request import ExportRequest
from export.triton import deployment, smoke_client
from export.triton.layout import ModelFolder, models_in, of_package
from export.triton.repository import check_repository, write_model
from runtime_py.errors import UsageError
from runtime_py.package.selftest import read_sample, write_sample
from runtime_py.triton.model import TritonModel
from runtime_py.triton.settings import ModelSettings
from targets.registry import target_named, targets

ROOT = Path(__file__).parents[2]
SERVERS = [target for target in targets().values() if target.server is not None]


def package_at(repository: Path, name: str, target: str) -> Path:
    """As much of a package as a repository reads: its manifest and its sample."""
    import numpy as np

    package = ModelFolder(repository, name).package
    package.mkdir(parents=True)
    write_sample(package, np.zeros((4, 4, 3), np.uint8), "What?", [1, 2])
    manifest = {
        "edgeproof": "0",
        "family": "minicpm-v",
        "target": target,
        "precision": "int4",
        "limits": {"context": 64, "batch": 1},
        "tools": {"onnxruntime": "1.2"},
        "verification": {"verdict": "pass"},
        "files": [{"path": "x", "bytes": 5 << 30, "sha256": ""}],
        "backends": {"onnx": {"cache": "float16"}},
        "contracts": {
            "decoder": {"inputs": [{"name": "past_key_values.0.key", "shape": ["batch", 1 << 10, "past", 1 << 10]}]}
        },
    }
    (package / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return package


@pytest.fixture(params=[target.name for target in SERVERS])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two models."""
    target = target_named(request.param)
    for name in ("one", "two"):
        assert write_model(package_at(tmp_path / "repo", name, target.name), target) == tmp_path / "repo"
    return tmp_path / "repo"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_triton_sees_models_and_nothing_else(repository: Path) -> None:
    assert {path.name for path in repository.iterdir() if path.is_dir()} == {"one", "two"}
    assert [model.name for model in models_in(repository)] == ["one", "two"]
    for name in ("one", "two"):
        versions = {path.name for path in (repository / name).iterdir() if path.is_dir()}
        assert versions == {"1"}
        assert {path.name for path in (repository / name / "1").iterdir()} == {"model.py", "package", "runtime"}
    there = {path.name for path in repository.iterdir() if path.is_file()}
    assert there in (set(deployment.names()), set(deployment.names()) - {deployment.BUILD})


def test_equal_packages_give_equal_bytes(repository: Path) -> None:
    before = contents(repository)
    target = target_named(json.loads((repository / "one/1/package/manifest.json").read_text())["target"])
    write_model(repository / "one/1/package", target)
    assert contents(repository) == before
    assert not [name for name in before if name.endswith(".partial") or "__pycache__" in name or "_test.py" in name]


def test_the_configuration_gives_every_setting_and_tensor(repository: Path) -> None:
    text = (repository / "one/config.pbtxt").read_text(encoding="utf-8")
    texts = ModelSettings().texts()
    rows = [f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}' for name, value in texts.items()]
    assert text.endswith("\n") and text.splitlines()[-len(rows) :] == rows
    assert "name:" not in text.split("input [")[0]  # the folder's name is the model's
    assert "decoupled: true" in text and "max_batch_size: 0\n" in text and 'backend: "python"\n' in text
    kinds = {"text_input": ("STRING", 1), "image": ("STRING", -1), "messages": ("STRING", 1)}
    kinds |= {"sampling_parameters": ("STRING", 1), "stream": ("BOOL", 1)}
    assert tensors(text, "input") == {name: (*kind, " optional: true") for name, kind in kinds.items()}
    kinds = {
        "text_output": ("STRING", 1),
        "token_ids": ("INT32", -1),
        "finish_reason": ("STRING", 1),
        "usage": ("STRING", 1),
    }
    assert tensors(text, "output") == {name: (*kind, "") for name, kind in kinds.items()}


def tensors(text: str, which: str) -> dict[str, tuple[str, int, str]]:
    """Type, size and ``optional`` of every input or output of a config.pbtxt, by name."""
    (block,) = re.findall(rf"^{which} \[\n(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    row = r'^  \{ name: "(\w+)" data_type: TYPE_(\w+) dims: \[ (-?\d+) \]( optional: true)? \},?$'
    return {name: (kind, int(size), optional) for name, kind, size, optional in re.findall(row, block, re.MULTILINE)}


def test_a_load_tool_asks_the_packages_own_sample_for_answers_of_equal_length(repository: Path) -> None:
    (row,) = json.loads((repository / "one/perf_input.json").read_text(encoding="utf-8"))["data"]
    assert row.keys() == {"text_input", "image", "sampling_parameters", "stream"}
    assert all(tensor["shape"] == [1] for tensor in row.values())
    sample = read_sample(repository / "one/1/package")
    assert sample is not None and row["text_input"]["content"] == [sample.prompt] and row["stream"]["content"] == [True]
    assert base64.b64decode(row["image"]["content"][0]) == sample.image.read_bytes()
    assert json.loads(row["sampling_parameters"]["content"][0]) == {"max_tokens": 32, "temperature": 0, "ignore_eos": True}


def test_a_runtime_of_before_leaves_nothing_behind(repository: Path) -> None:
    """Of a version that had other files, or of an export that broke off."""
    version = repository / "one" / "1"
    for old in ("runtime/runtime_py/gone.py", "runtime.partial/half.py"):
        (version / old).parent.mkdir(exist_ok=True)
        (version / old).touch()
    write_model(version / "package", target_named(json.loads((version / "package/manifest.json").read_text())["target"]))
    assert not (version / "runtime/runtime_py/gone.py").exists() and not list(version.rglob("half.py"))


@pytest.mark.parametrize(("planned", "slots"), [(1, 8), (4, 4)])
def test_a_model_has_as_many_slots_as_were_planned(tmp_path: Path, planned: int, slots: int) -> None:
    target = target_named("server-gpu")
    package = package_at(tmp_path, "one", target.name)
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["limits"]["batch"] = planned
    (package / "manifest.json").write_text(json.dumps(manifest))
    write_model(package, target)
    text = (tmp_path / "one/config.pbtxt").read_text(encoding="utf-8")
    assert f'parameters {{ key: "slots" value: {{ string_value: "{slots}" }} }}' in text


def test_the_entry_is_thin_and_the_runtime_imports_alone(repository: Path) -> None:
    tree = ast.parse((repository / "one/1/model.py").read_text(encoding="utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["TritonPythonModel"]
    assert all(hasattr(TritonModel, name) for name in ("initialize", "execute", "finalize"))
    code = (
        "import sys, runtime_py.triton.model as m; print(m.__file__); assert not {'export', 'starlette'} & set(sys.modules)"
    )
    runtime = repository / "one/1/runtime"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False, cwd=runtime, env={"PYTHONPATH": "."}
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve().is_relative_to(runtime.resolve())


def test_the_requirements_are_the_runtimes_with_numpy_1(repository: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {row for row in project["dependencies"] if not row.startswith("numpy")} | {"numpy>=1.26,<2"}
    grammar = {row for row in project["optional-dependencies"]["serve"] if row.startswith("llguidance")}
    assert set(deployment.COMMON) == own | grammar
    given = (repository / "requirements.txt").read_text(encoding="utf-8").split()
    assert set(deployment.COMMON) < set(given)


def test_the_readme_names_models_and_versions(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    target = json.loads((repository / "one/1/package/manifest.json").read_text())["target"]
    for name in ("one", "two"):
        assert f"| {name} | minicpm-v | {target} | int4 | 64 | pass | edgeproof 0, onnxruntime 1.2 |" in text.splitlines()
    assert "$" not in re.sub(r"\$PWD|\$PATH|\$\(base64", "", text)


def test_nothing_that_the_readme_or_the_analyser_makes_lies_in_the_repository(repository: Path) -> None:
    """Triton takes every folder in it for a model and does not start where one is none."""
    yaml = pytest.importorskip("yaml")
    made = re.findall(r"-m venv (\S+)", (repository / "README.md").read_text(encoding="utf-8"))
    told = yaml.safe_load((repository / "model_analyzer.yaml").read_text(encoding="utf-8"))
    made += [told[name] for name in ("output_model_repository_path", "checkpoint_directory", "export_path")]
    assert len(made) == 4
    for place in made:
        assert not (repository / place).resolve().is_relative_to(repository.resolve())
    assert list(told["profile_models"]) == ["one", "two"]


def test_kubernetes_takes_the_manifests(repository: Path) -> None:
    yaml, validate = pytest.importorskip("yaml"), pytest.importorskip("kubernetes_validate")
    documents = list(yaml.safe_load_all((repository / "kubernetes.yaml").read_text(encoding="utf-8")))
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)
    kinds = {document["kind"]: document for document in documents}
    assert set(kinds) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    container = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["resources"]["limits"]["memory"] == "15Gi"  # twice five, and a cache of 64 positions in 8 slots, and 3
    with pytest.raises(validate.ValidationError):
        validate.validate({**documents[0], "spec": {"replicas": "many"}}, validate.latest_version(), strict=True)


def test_compose_takes_its_file(repository: Path) -> None:
    yaml, compose = pytest.importorskip("yaml"), pytest.importorskip("compose_spec")
    value: dict[str, Any] = yaml.safe_load((repository / "compose.yaml").read_text(encoding="utf-8"))
    compose.ComposeSpecification.model_validate(value)
    value["services"]["triton"]["ports"] = 5
    with pytest.raises(ValueError, match="ports"):
        compose.ComposeSpecification.model_validate(value)


def test_compose_itself_reads_its_file(repository: Path) -> None:
    """Docker's own program, or the older one that Debian still has, which knows fewer keys."""
    programs = (["docker", "compose"], ["docker-compose"])
    program = next((words for words in programs if shutil.which(words[0]) and _runs([*words, "version"])), None)
    if program is None:
        pytest.skip("no docker compose here")
    said = subprocess.run([*program, "config"], cwd=repository, capture_output=True, text=True, check=False)
    assert said.returncode == 0 and "tritonserver" in said.stdout, said.stderr


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_metric_of_the_autoscaler_is_one_that_models_have(repository: Path) -> None:
    from runtime_py.triton.metrics import GAUGES

    for name in ("kubernetes.yaml", "prometheus_adapter.yaml"):
        named = set(re.findall(r"edgeproof_(\w+)", (repository / name).read_text(encoding="utf-8")))
        assert named and named <= set(GAUGES)


def smoke(repository: Path) -> tuple[int, str]:
    """Exit code and words of the repository's client, where no server listens."""
    command = [sys.executable, str(repository / deployment.SMOKE), "127.0.0.1", "9", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_smoke_client_tries_every_model_in_every_way(tmp_path: Path) -> None:
    target = SERVERS[0]
    for name in ("one", "two"):
        write_model(package_at(tmp_path, name, target.name), target)
    (tmp_path / "one" / "1" / "package" / "selftest" / "sample.json").write_text("[]", encoding="utf-8")
    code, said = smoke(tmp_path)
    assert code == 1
    assert said.count("HTTP FAILED") == 2 and "HTTP FAILED: TypeError" in said and "HTTP FAILED: ConnectionRefused" in said
    assert said.splitlines()[-1].split(";")[0] in ("3 failed", "4 failed"), (
        "without tritonclient the second model's gRPC is left out"
    )


def test_the_smoke_client_is_not_content_without_models(tmp_path: Path) -> None:
    shutil.copyfile(Path(deployment.__file__).parent / deployment.SMOKE, tmp_path / deployment.SMOKE)
    code, said = smoke(tmp_path)
    assert code == 1 and "no model" in said


@pytest.mark.parametrize(("agree", "compared"), [(None, 2), (1, 1), (0, 0)])
def test_the_smoke_client_says_what_it_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], agree: int | None, compared: int
) -> None:
    package = package_at(tmp_path, "one", SERVERS[0].name)
    path = package / "selftest" / "sample.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["agree"]
    path.write_text(json.dumps(value | ({} if agree is None else {"agree": agree})), encoding="utf-8")
    sample = smoke_client.Sample(package)
    sample.check("HTTP, whole", [1, 2][:compared], "words")
    assert ("nothing recorded" in capsys.readouterr().out) == (not compared)
    if compared:
        with pytest.raises(smoke_client.Failure):
            sample.check("HTTP, whole", [3], "words")


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    check_repository(tmp_path)
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"README\.md"):
        check_repository(tmp_path)
    package_at(tmp_path, "one", "server-cpu")
    check_repository(tmp_path)


def test_a_package_is_not_made_a_repository(tmp_path: Path) -> None:
    """What a repository has besides would be files that the package's manifest lacks: it would not open any more."""
    package = package_at(tmp_path, "one", "server-cpu")
    with pytest.raises(UsageError, match="as a package does"):
        check_repository(package)
    check_repository(tmp_path)


def test_the_output_names_the_repository(tmp_path: Path) -> None:
    for target in SERVERS:
        request = ExportRequest(model="openbmb/MiniCPM-V-2", target=target.name, output=tmp_path)
        model = of_package(request.output_folder())
        assert (model.repository, model.name) == (tmp_path, "MiniCPM-V-2")
        assert models_in(tmp_path) == []
