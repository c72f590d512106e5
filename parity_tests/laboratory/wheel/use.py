"""A wheel in an environment of its own, and what a user types there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from runtime_py.errors import EdgeproofError, ExitCode, MachineError

TORCH = "torch==2.13.0"
"""As in ./run: first and by exact version, so that no other package's range brings a larger build."""

PLANNED = (("cpu", "int4"), ("cpu", "fp32"), ("android", "int4"), ("ios", "int4"), ("desktop-gpu", "int4"))
LIMIT_SECONDS = 1800


class WheelError(EdgeproofError):
    """A wheel that does not do what it must."""

    exit_code = ExitCode.PARITY_FAILED


@dataclass(frozen=True)
class Environment:
    """An environment outside the checkout.

    Attributes:
        folder: the environment; commands run in its folder ``elsewhere``, from which no module of the checkout is seen.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """An empty environment with pip."""
        venv.create(folder, with_pip=True, clear=True)
        (folder / "elsewhere").mkdir()
        return cls(folder)

    def install(self, *packages: str) -> None:
        """Install packages.

        Raises:
            MachineError: pip failed.
        """
        done = self._run("python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)
        if done.returncode:
            raise MachineError(f"pip could not install {' '.join(packages)}", done.stderr[-1500:], "read pip's message")

    def say(self, *arguments: str, expected: int = 0) -> str:
        """What ``edgeproof`` prints on stdout and stderr together.

        Raises:
            WheelError: another exit code than expected.
        """
        done = self._run("edgeproof", *arguments)
        said = done.stdout + done.stderr
        if done.returncode != expected:
            raise WheelError(
                f"edgeproof {' '.join(arguments)} from the wheel",
                f"exit code {expected}, found {done.returncode}: {said[-1500:]}",
                "mend the wheel's contents or requirements",
            )
        return said

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.folder / "bin" / program), *arguments]
        return subprocess.run(
            command,
            cwd=self.folder / "elsewhere",
            env=inherited | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_SECONDS,
        )


def build(repository: Path, folder: Path) -> Path:
    """Build the wheel of a checkout.

    Raises:
        MachineError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check", "-w", str(folder)]
    done = subprocess.run([*command, str(repository)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError("the wheel could not be built", done.stderr[-1500:], "read pip's message")
    (wheel,) = folder.glob("edgeproof-*.whl")
    return wheel


def without_extras(environment: Environment) -> None:
    """A bare installation answers what needs no library, and names the extra that is missing for the rest.

    Raises:
        WheelError: it does not.
    """
    environment.say("--help")
    if "android" not in environment.say("targets"):
        raise WheelError("edgeproof targets from the wheel", "the target android", "look at what the wheel holds")
    asked = ("export", "--model", "minicpm-v", "--weights", "demo", "--target", "cpu")
    said = environment.say(*asked, expected=ExitCode.ENVIRONMENT)
    if "edgeproof[export]" not in said:
        raise WheelError("an export without torch", f"the name of the missing extra, found {said}", "name it in the error")


def with_extras(environment: Environment, families: list[str]) -> None:
    """Every demo can be planned for every target; one is exported, checked and asked.

    Raises:
        WheelError: a command failed.
    """
    for family in families:
        for target, precision in PLANNED:
            asked = ("--model", family, "--weights", "demo", "--target", target, "--precision", precision)
            environment.say("export", *asked, "--dry-run")
    environment.say("export", "--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "-o", "package")
    environment.say("verify", "--package", "package")
    picture = ("--image", "package/selftest/image.png")
    if not environment.say("chat", "--package", "package", *picture, "--prompt", "What is this?").strip():
        raise WheelError("edgeproof chat from the wheel", "an answer, found none", "ask the package by hand")
    if not (environment.folder / "elsewhere" / "package" / "LICENSE").is_file():
        raise WheelError(
            "a package of a demo", "the licence of the demo's weights in it", "look at the wheel's LICENSE files"
        )
