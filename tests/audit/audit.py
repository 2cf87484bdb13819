"""Looks for known vulnerabilities and for secrets, and writes a list of all that is used (SBOM).

python -m tests.audit.audit [--accept]

It runs the tools of `tests/audit/requirements.txt`, beside its own interpreter, and exits with 1 if something is found.

- Vulnerabilities: every version of `constraints.txt` is looked up in PyPI's advisories (pip-audit). Where they cannot
  be reached, nothing was looked up, and the last lines say so. With AUDIT_STRICT=1 that is an error.
- Secrets: every tracked file is scanned (detect-secrets, without its test for hexadecimal text, which finds each of
  our hashes). What was found and is none, such as a password of a test, is in `known_secrets.json`; `--accept` writes
  it anew.
- SBOM: `build/sbom.json` in CycloneDX's format, of all versions of `constraints.txt`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
KNOWN = Path(__file__).with_name("known_secrets.json")
PATIENCE = 900  # seconds for a tool

Secrets = dict[str, list[str]]  # by file: "kind hash" of each


def tool(name: str, *words: str) -> str:
    """What a tool prints. Raises `SystemExit` with its errors where it prints nothing."""
    command = [str(TOOLS / name), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if not done.stdout.strip():
        raise SystemExit(f"{name} failed with status {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def vulnerabilities(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(a line for each known vulnerability, the packages that were not looked up) of pip-audit's report."""
    found, skipped = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            skipped.append(package["name"])
        for one in package.get("vulns", ()):
            fixed = ", ".join(one["fix_versions"]) or "no version"
            found.append(f"{package['name']} {package['version']}: {one['id']}, fixed in {fixed}")
    return found, skipped


def secrets(report: dict[str, Any]) -> Secrets:
    """What detect-secrets' report names; lines are left out, so that a file may change around it."""
    return {
        file: sorted({f"{one['type']} {one['hashed_secret']}" for one in found})
        for file, found in sorted(report["results"].items())
    }


def unknown(found: Secrets, known: Secrets) -> list[str]:
    """A line for each secret that nobody has looked at."""
    return [
        f"{file}: {one.rpartition(' ')[0]}"
        for file, several in found.items()
        for one in several
        if one not in known.get(file, ())
    ]


def main(accept: bool) -> int:
    """Run everything. Returns the exit status."""
    (ROOT / "build").mkdir(exist_ok=True)
    tool_words = (
        "requirements",
        "constraints.txt",
        "--pyproject",
        "pyproject.toml",
        "--of",
        "JSON",
        "-o",
        "-",
    )
    (ROOT / "build" / "sbom.json").write_text(tool("cyclonedx-py", *tool_words))
    print("build/sbom.json lists the versions of constraints.txt")

    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    paths = [name for name in files if name and (ROOT / name).is_file() and (ROOT / name) != KNOWN]
    scan = ("scan", "--no-verify", "--disable-plugin", "HexHighEntropyString", *paths)
    found = secrets(json.loads(tool("detect-secrets", *scan)))
    if accept:
        KNOWN.write_text(json.dumps(found, indent=2) + "\n")
    wrong = [f"a secret? {line}" for line in unknown(found, json.loads(KNOWN.read_text()))]
    print(f"{len(paths)} files were scanned for secrets")

    words = ("-r", "constraints.txt", "--no-deps", "--disable-pip", "-f", "json", "--progress-spinner", "off")
    report = json.loads(tool("pip-audit", *words))
    vulnerable, skipped = vulnerabilities(report)
    wrong += vulnerable
    everything = len(report["dependencies"])
    print(f"{everything - len(skipped)} of {everything} packages were looked up in PyPI's advisories")
    if skipped:
        print(f"NOT looked up, as the advisories cannot be reached or do not know them: {', '.join(skipped)}")
    print("\n".join(wrong) or "nothing was found")
    return 1 if wrong or (skipped and os.environ.get("AUDIT_STRICT") == "1") else 0


if __name__ == "__main__":
    sys.exit(main("--accept" in sys.argv[1:]))
