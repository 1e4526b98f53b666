"""Makes generated/ from proto/: Python messages, gRPC stubs, type stubs and the contract's image.

With --check it changes nothing and fails when generated/ is not what proto/ says.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "generated"

IMAGE = "hansard/hansard.binpb"
VALIDATE = "buf/validate/validate.proto"
# No message has a field of these types: they travel in the details of a status. They are in the
# image so that a client made from it alone can read them.
DETAILS = "google/rpc/error_details.proto"
# Packages without __init__.py: each names the folder from which on type checkers may trust it.
TYPED = ("hansard/py.typed", "buf/validate/py.typed")


def validate_descriptors() -> bytes:
    """Return the descriptor set of buf.validate, which no package ships as a .proto file."""
    file = FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    # The package for Python was made under other options than the library for Java.
    file.options.java_package = "build.buf.validate"
    return FileDescriptorSet(file=[file]).SerializeToString()


def protoc(descriptors: Path, files: list[str], *outputs: str) -> None:
    """Run protoc: imports come from proto/, from google's own packages, or from descriptors.

    The module form of grpc_tools adds google/protobuf/*.proto to the include path by itself;
    googleapis-common-protos has google/api and google/rpc beside its modules.
    """
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            f"--descriptor_set_in={descriptors}",
            f"--proto_path={PROTO}",
            f"--proto_path={sysconfig.get_path('purelib')}",
            *outputs,
            *files,
        ],
        check=True,
    )


def generate(out: Path, descriptors: Path) -> None:
    """Write the whole content of generated/ to the folder out."""
    scripts = Path(sysconfig.get_path("scripts"))
    files = sorted(path.relative_to(PROTO).as_posix() for path in PROTO.rglob("*.proto"))
    image = out / IMAGE
    image.parent.mkdir(parents=True)
    protoc(
        descriptors,
        [*files, DETAILS],
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={image}",
    )
    protoc(
        descriptors,
        [*files, VALIDATE],
        f"--python_out={out}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--mypy_out=quiet:{out}",
    )
    contract = FileDescriptorSet.FromString(image.read_bytes())
    # A file without a service would get an empty module of stubs.
    protoc(
        descriptors,
        [file.name for file in contract.file if file.name in files and file.service],
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--mypy_grpc_out=quiet:{out}",
    )
    for name in TYPED:
        (out / name).touch()


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below the folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def out_of_date(wanted: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Return the paths that are missing, differ, or should not be there."""
    return sorted(
        path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)
    )


def main() -> int:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, fail on a difference")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as temporary:
        descriptors = Path(temporary) / "validate.binpb"
        descriptors.write_bytes(validate_descriptors())
        out = Path(temporary) / "generated"
        generate(out, descriptors)
        paths = out_of_date(tree(out), tree(GENERATED))
        if paths and check:
            print("Out of date (run `make gen`):", *paths, sep="\n  generated/")
            return 1
        if paths:
            # Whole, so that no file stays whose source is gone.
            shutil.rmtree(GENERATED, ignore_errors=True)
            shutil.copytree(out, GENERATED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
