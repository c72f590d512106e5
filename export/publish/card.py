"""The model card of a package: README.md of its repository, from the manifest alone.

The metadata above the text are those of the hub (huggingface/hub-docs, docs/hub/model-cards.md), written by huggingface_hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.backends.onnx.consumers.held import Tool
from export.families.names import HUB_ID, find
from export.publish import parity_table
from export.publish.licence import hub_licence
from export.quantisation.spec import is_int4
from runtime_py.backends.registry import runtime_backend
from runtime_py.backends.stock_engine import stored_engines
from runtime_py.files.json_file import shortened
from runtime_py.package import Package, trust

NAME = "README.md"
LIBRARY = "edgeproof"
PROJECT_TAGS = (LIBRARY, "vision-language", "on-device")
TASK = "image-text-to-text"
PASS = "pass"


def card(package: Package, repo_id: str) -> str:
    """The text of README.md.

    Args:
        repo_id: where the package will be, for the commands in the text.
    """
    return f"---\n{_metadata(package)}\n---\n\n" + "\n".join(_text(package, repo_id)) + "\n"


def base_model(package: Package) -> str | None:
    """Hub id of the checkpoint that a package was made from; None for a folder or a demo."""
    source = package.manifest.get("source", {})
    name = str(source.get("id", ""))
    on_hub = source.get("revision") is not None or find(name) is not None
    return name if on_hub and HUB_ID.fullmatch(name) and not name.startswith("demo/") else None


def _metadata(package: Package) -> str:
    from huggingface_hub import ModelCardData

    base, stated = base_model(package), package.manifest.get("licence", {})
    licence = hub_licence(str(stated.get("name", "")), package.family, list(stated.get("files", [])), base)
    data = ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base is not None and is_int4(package.precision) else None,
        library_name=LIBRARY,
        license=licence.license,
        license_name=licence.name,
        license_link=licence.link,
        pipeline_tag=TASK,
        tags=[*PROJECT_TAGS, package.family, package.target, package.precision, *sorted(package.manifest["backends"])],
    )
    return data.to_yaml().rstrip()


def _text(package: Package, repo_id: str) -> Iterator[str]:
    manifest = package.manifest
    source, base = manifest.get("source", {}), base_model(package)
    shown = f"[{base}](https://huggingface.co/{base})" if base else f"`{shortened(source.get('id', '?'))}`"
    revision = f" at revision `{source['revision']}`" if source.get("revision") else ""
    yield f"# {repo_id.rpartition('/')[2]}"
    yield ""
    yield (
        f"{package.family} {package.variant} for `{package.target}` at `{package.precision}`, exported from {shown}"
        f"{revision} by edgeproof {manifest.get('edgeproof', '?')}. Context {package.limits.context:,} tokens; "
        f"{len(package.files) + 1} files, {package.size / 1e6:,.1f} MB."
    )
    yield ""
    yield from _verified(manifest)
    yield "## How to run it"
    yield ""
    yield from _running(package, repo_id)
    yield "## Licence"
    yield ""
    yield str(manifest.get("licence", {}).get("name") or "Not stated by the checkpoint.")
    files = manifest.get("licence", {}).get("files", [])
    yield ("Its text: " + ", ".join(f"[{name}]({name})" for name in files) + ".") if files else ""
    yield ""
    yield "## Is it this package?"
    yield ""
    yield (
        "`manifest.json` holds the SHA-256 of every file and every probe of the check. Its own is "
        f"`{trust.ALGORITHM}{package.fingerprint}`; `python -m runtime_py verify --package {repo_id}` compares them all."
    )


def _verified(manifest: Mapping[str, Any]) -> Iterator[str]:
    found = manifest.get("verification", {})
    verdict, probes = str(found.get("verdict", "not run")), found.get("probes", [])
    yield "## What was verified"
    yield ""
    if verdict == PASS:
        yield "After the export the package was run beside the PyTorch reference; every judged probe is within its limit."
    else:
        first = f", first at {found['first_failure']}" if found.get("first_failure") else ""
        yield f"**This package is not verified: the check's verdict is `{verdict}`{first}.**"
    yield ""
    if probes:
        yield from parity_table.table(probes)
        yield ""
        yield from parity_table.meanings(probes)
        yield ""
        yield "Each row is the worst of all questions asked; the last column is the share of equal tokens."
        yield ""
    yield from _listed("Not run:", [_row_text(row) for row in found.get("not_run", [])])
    yield from _listed("Waived by whoever exported it:", [_row_text(row) for row in manifest.get("waivers", [])])


def _row_text(row: Any) -> str:
    if isinstance(row, Mapping):
        return ": ".join(str(value) for value in row.values())
    return ": ".join(map(str, row)) if isinstance(row, Sequence) and not isinstance(row, str) else str(row)


def _listed(title: str, rows: Sequence[str]) -> Iterator[str]:
    if rows:
        yield title
        yield ""
        yield from (f"- {row}" for row in rows)
        yield ""


def _running(package: Package, repo_id: str) -> Iterator[str]:
    code = trust.runs_code(package)
    given = f" --trust {trust.ALGORITHM}{package.fingerprint}" if code else ""
    said = f', trust="{trust.ALGORITHM}{package.fingerprint}"' if code else ""
    extras = ["hub", *(one.extra for one in runtime_backend(package.runtime_backend).distributions[:1])]
    yield "With edgeproof's runtime (NumPy, no PyTorch):"
    yield ""
    yield f"    pip install 'edgeproof[{','.join(extras)}]'"
    yield f'    python -m runtime_py chat --package {repo_id} --image photo.jpg --prompt "What is this?"{given}'
    yield ""
    yield "From Python:"
    yield ""
    yield "    import runtime_py"
    yield f'    with runtime_py.load("{repo_id}"{said}) as model:'
    yield '        print(model.chat("What is this?", images=["photo.jpg"]).text)'
    yield ""
    names = {row.path for row in package.files}
    if any(name.endswith(".onnx") for name in names):
        yield (
            "With ONNX Runtime alone: the graphs are in `onnx/`; names, dtypes and shapes of their inputs and outputs are "
            "under `contracts` in `manifest.json`, the prompt in `chat_template.jinja`."
        )
        yield ""
    for block in package.manifest["backends"].values():
        for tool, obstacles in block.get("kept_from_tools_by", {}).items():
            yield from _in_tool(tool, obstacles, repo_id)
    for engine in stored_engines(package.manifest):
        told = list(engine.lines())
        yield f"In a phone's app, the stock engine does this with it: {told[0]}."
        yield ""
        yield from _listed("What it leaves out:", told[1:])


def _in_tool(tool: str, obstacles: Sequence[str], repo_id: str) -> Iterator[str]:
    """How a tool of others opens the package, or what keeps it from that."""
    if obstacles:
        yield f"{tool} cannot hold this model: {'; '.join(obstacles)}."
        yield ""
    elif tool == Tool.TRANSFORMERS_JS:
        yield "With transformers.js (precision and files of each graph are in `config.json`):"
        yield ""
        yield "    import { AutoModelForImageTextToText, AutoProcessor } from '@huggingface/transformers';"
        yield f"    const processor = await AutoProcessor.from_pretrained('{repo_id}');"
        yield f"    const model = await AutoModelForImageTextToText.from_pretrained('{repo_id}');"
        yield ""
    elif tool == Tool.GENAI:
        yield "With onnxruntime-genai (ids and pixels come from edgeproof's processor, see its docs/targets/onnx_tools.md):"
        yield ""
        yield f"    hf download {repo_id} --local-dir model"
        yield "    python -c \"import onnxruntime_genai; onnxruntime_genai.Model('model')\""
        yield ""
