"""Builds the clients: each from its own sources and the image, in a folder of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.support.builds import BUILD, ROOT, only_one, run, tool

SOURCES = Path(__file__).resolve().parent
IMAGE = ROOT / "generated" / "hansard" / "hansard.binpb"
# What package managers fetched, which stays when the sources change.
KEPT = {"node_modules", "tools"}
Tools = Mapping[str, str]


@dataclass(frozen=True)
class Program:
    """A client that has been built: its command, and what it needs in its environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def build(language: str) -> Program:
    """Return the client of a language; it is built when its sources or the image have changed."""
    make = BUILDERS[language]
    tools = {name: tool(name) for name in make.tools}
    folder = BUILD / language
    with only_one(language):
        state = _state(language)
        stamp = folder / ".built"
        if not (stamp.exists() and stamp.read_text(encoding="utf-8") == state):
            _copy_sources(language, folder)
            make.build(folder)
            stamp.write_text(state, encoding="utf-8")
    return make.program(folder, tools)


def build_agent(language: str) -> Program:
    """Return the agent of a language, which stands beside its client."""
    client = build(language)
    *words, path = client.command
    agent = Path(path).with_stem("agent")
    return Program((*words, str(agent)), client.environment)


def _state(language: str) -> str:
    digest = hashlib.sha256(IMAGE.read_bytes())
    digest.update(Path(__file__).read_bytes())
    for path in sorted((SOURCES / language).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(SOURCES)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _copy_sources(language: str, folder: Path) -> None:
    """Lay the sources and the image down anew; what a package manager fetched stays."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.name in KEPT:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCES / language, folder, dirs_exist_ok=True, ignore=ignore)
    shutil.copyfile(IMAGE, folder / IMAGE.name)


def _build_python(folder: Path) -> None:
    contract = FileDescriptorSet.FromString(IMAGE.read_bytes())
    names = [f.name for f in contract.file if f.name.startswith(("hansard/", "buf/"))]
    (folder / "gen").mkdir()
    run(
        *(sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={IMAGE.name}"),
        *("--python_out=gen", "--grpc_python_out=gen", *names),
        folder=folder,
    )


def _python_program(folder: Path, _: Tools) -> Program:
    # -S: no .pth files are read, so Hansard's own package can't be imported.
    paths = os.pathsep.join([str(folder / "gen"), sysconfig.get_path("purelib")])
    return Program((sys.executable, "-S", str(folder / "conversation.py")), {"PYTHONPATH": paths})


def _build_go(folder: Path) -> None:
    run("go", "mod", "download", folder=folder, fetches=True)
    run("buf", "generate", folder=folder)
    run("go", "vet", ".", folder=folder)
    run("go", "build", "-o", "conversation", ".", folder=folder)


def _go_program(folder: Path, _: Tools) -> Program:
    return Program((str(folder / "conversation"),))


def _build_typescript(folder: Path) -> None:
    run("npm", "ci", "--no-audit", "--no-fund", folder=folder, fetches=True)
    run("npm", "run", "generate", folder=folder)
    run("npm", "run", "build", folder=folder)


def _typescript_program(folder: Path, tools: Tools) -> Program:
    return Program((tools["node"], str(folder / "dist" / "src" / "conversation.js")))


def _build_java(folder: Path) -> None:
    run("mvn", "--batch-mode", "--quiet", "initialize", folder=folder, fetches=True)
    for program in (folder / "tools").iterdir():
        program.chmod(0o755)
    run("buf", "generate", folder=folder)
    run("mvn", "--batch-mode", "--quiet", "package", folder=folder, fetches=True)


def _java_program(folder: Path, tools: Tools) -> Program:
    classes = os.pathsep.join([str(folder / "target/classes"), str(folder / "target/libraries/*")])
    return Program((tools["java"], "-XX:TieredStopAtLevel=1", "-cp", classes, "Conversation"))


@dataclass(frozen=True)
class Language:
    """How the client of a language is built and run, and the tools that this takes."""

    tools: tuple[str, ...]
    build: Callable[[Path], None]
    program: Callable[[Path, Tools], Program]


BUILDERS: dict[str, Language] = {
    "python": Language((), _build_python, _python_program),
    "go": Language(("go", "buf"), _build_go, _go_program),
    "typescript": Language(("node", "npm"), _build_typescript, _typescript_program),
    "java": Language(("java", "javac", "mvn", "buf"), _build_java, _java_program),
}
LANGUAGES: Sequence[str] = tuple(BUILDERS)
AGENTS: Sequence[str] = ("python", "typescript")
"""The languages with an agent that runs elsewhere."""
