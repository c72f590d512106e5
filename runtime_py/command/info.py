"""What ``python -m runtime_py info`` says of a package, from its manifest alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from runtime_py.backends.stock_engine import StockEngine, stored_engines
from runtime_py.package import Package, trust

ENGINES = "stock_engines"
"""Key of what apps' own engines do with the package."""

NOT_NEEDED = "not needed: data alone is opened"


def describe(package: Package) -> dict[str, Any]:
    """JSON-able facts of a package."""
    manifest = package.manifest
    storages = Counter(row.get("storage", "unknown") for row in manifest.get("assignments", {}).values())
    folders: Counter[str] = Counter()
    for file in package.files:
        folders[file.path.split("/")[0] + "/" if "/" in file.path else "."] += file.bytes
    return {
        "family": package.family,
        "variant": package.variant,
        "target": package.target,
        "precision": package.precision,
        "runtime_backend": package.runtime_backend,
        "backends": sorted(manifest.get("backends", {})),
        "limits": {"context": package.limits.context, "prefill_chunk": package.limits.prefill_chunk},
        "layers_by_storage": dict(sorted(storages.items())),
        "files": len(package.files),
        "bytes": package.size,
        "bytes_by_folder": dict(sorted(folders.items())),
        "source": {key: manifest.get("source", {}).get(key) for key in ("id", "revision")},
        "licence": manifest.get("licence", {}).get("name"),
        "waivers": manifest.get("waivers", []),
        "verification": manifest.get("verification", {}).get("verdict"),
        "edgeproof": manifest.get("edgeproof"),
        "tools": manifest.get("tools", {}),
        ENGINES: [engine.to_json() for engine in stored_engines(manifest)],
        "manifest": trust.ALGORITHM + package.fingerprint,
        "code": trust.code_files(manifest),
        "trust": _trust(package),
    }


def _trust(package: Package) -> str:
    if trust.runs_code(package):
        return str(trust.standing(package))
    return f"{trust.standing(package)}; without it data alone is opened" if trust.code_beside(package) else NOT_NEEDED


def lines(facts: dict[str, Any]) -> list[str]:
    """The same for people, a line each."""

    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {shown(item)}" for key, item in value.items()) or "none"
        if isinstance(value, list):
            return ", ".join(shown(item) for item in value) or "none"
        if value is None:
            return "none"
        return f"{value:,}" if isinstance(value, int) else str(value)

    told = [f"{key.replace('_', ' '):18} {shown(value)}" for key, value in facts.items() if key != ENGINES]
    for engine in facts[ENGINES]:
        first, *rest = StockEngine.from_json(engine).lines()
        told += [f"{'in the app':18} {first}", *(f"{'':18} {line}" for line in rest)]
    return told
