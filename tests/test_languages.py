"""Code for other languages, generated as buf.gen.yaml says and compiled. No name in the contract may prevent that.

The plugins run locally, not on buf's machines. They come from Debian, so they are older than buf's.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unit import ROOT, needs

NODE = ROOT / "examples" / "node"
# The local plugin that replaces each remote plugin of buf.gen.yaml.
LOCAL = {
    "protocolbuffers/cpp": "protoc_builtin: cpp",
    "protocolbuffers/go": "local: protoc-gen-go",
    "protocolbuffers/java": "protoc_builtin: java",
    "grpc/cpp": "local: grpc_cpp_plugin",
    "grpc/go": "local: protoc-gen-go-grpc",
    "grpc/java": "local: grpc_java_plugin",
    "bufbuild/es": f"local: {NODE}/node_modules/.bin/protoc-gen-es",
}
JARS = ("protobuf", "grpc-api", "grpc-stub", "grpc-protobuf", "guava")


def generate(language: str, directory: Path) -> Path:
    """Generate the code of one language as buf.gen.yaml says, and return the directory with the code."""
    head, *plugins = re.split(r"^(?=  - remote: )", (ROOT / "buf.gen.yaml").read_text(), flags=re.MULTILINE)
    chosen = "".join(plugin for plugin in plugins if f"out: gen/{language}\n" in plugin)
    assert chosen
    template = directory / "buf.gen.yaml"
    template.write_text(head + re.sub(r"remote: buf\.build/(\S+)", lambda match: LOCAL[match[1]], chosen))
    buf = Path(sys.executable).parent / "buf"
    compile_with(ROOT, buf, "generate", "--template", template, "--output", directory)
    return directory / "gen" / language


def compile_with(directory: Path, *command: str | Path, **variables: str) -> None:
    done = subprocess.run(
        command, cwd=directory, env=os.environ | variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def sources(directory: Path, pattern: str) -> list[Path]:
    found = sorted(directory.rglob(pattern))
    assert found
    return found


@pytest.mark.long
@needs("g++")
@needs("protoc", "protobuf-compiler")
@needs("grpc_cpp_plugin", "protobuf-compiler-grpc")
@needs("/usr/include/google/protobuf/message.h", "libprotobuf-dev")
@needs("/usr/include/grpcpp/grpcpp.h", "libgrpc++-dev")
@pytest.mark.timeout(180)
def test_cpp_takes_the_contract(tmp_path: Path) -> None:
    code = generate("cpp", tmp_path)
    compile_with(code, "g++", "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", "-I.", *sources(code, "*.cc"))


@pytest.mark.long
@needs("javac", "default-jdk-headless")
@needs("protoc", "protobuf-compiler")
@needs("grpc_java_plugin", "protobuf-compiler-grpc-java-plugin")
@needs("/usr/share/java/protobuf.jar", "libprotobuf-java")
@needs("/usr/share/java/grpc-stub.jar", "libgrpc-java")
@needs("/usr/share/java/guava.jar", "libguava-java")
@pytest.mark.timeout(180)
def test_java_takes_the_contract(tmp_path: Path) -> None:
    code = generate("java", tmp_path)
    # Debian's gRPC plugin for Java always writes this annotation; it has no option to omit it yet. Define the
    # annotation here, because the JDK lacks it.
    annotation = code / "javax" / "annotation" / "Generated.java"
    annotation.parent.mkdir(parents=True)
    annotation.write_text(
        "package javax.annotation;\npublic @interface Generated { String value(); String comments(); }"
    )

    path = ":".join(f"/usr/share/java/{jar}.jar" for jar in JARS)
    classes = tmp_path / "classes"
    compile_with(code, "javac", "-proc:none", "-nowarn", "-d", classes, "-cp", path, *sources(code, "*.java"))

    assert (classes / "io" / "cellexport" / "v1" / "CellExportServiceGrpc.class").exists()


@needs("go", "golang-go")
@needs("protoc-gen-go")
@needs("protoc-gen-go-grpc")
@needs("/usr/share/gocode/src/google.golang.org/grpc", "golang-google-grpc-dev")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_go_takes_the_contract(tmp_path: Path) -> None:
    # This test takes long, because it compiles the libraries too: Debian has only their sources.
    code = generate("go", tmp_path)
    package = tmp_path / "go" / "src" / "example.com" / "you" / "gen" / "go"
    package.parent.mkdir(parents=True)
    shutil.move(code, package)
    go = {"GO111MODULE": "off", "GOPATH": f"{tmp_path}/go:/usr/share/gocode", "GOFLAGS": ""}
    compile_with(package / "cellexport" / "v1", "go", "build", ".", **go)


@needs("npm")
@pytest.mark.timeout(400)
def test_typescript_takes_the_contract(tmp_path: Path, node: Path) -> None:
    code = generate("typescript", tmp_path)
    (code / "node_modules").symlink_to(NODE / "node_modules")
    (code / "package.json").write_text('{"type": "module"}')
    options = {"strict": True, "noEmit": True, "module": "node16", "target": "es2022", "types": []}
    (code / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    assert sources(code / "cellexport", "*_pb.ts")
    compile_with(code, node.parent / "node_modules" / ".bin" / "tsc", "-p", code)
