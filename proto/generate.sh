#!/bin/sh
# Generates daemon/modelvold/rpc/gen from proto/. Needs grpcio-tools in $PYTHON (default: the repository's virtual environment).
#
# The folders are mapped onto the virtual path modelvold/rpc/gen, because protoc's Python imports follow a file's path: so
# the modules import each other under their real names, and nothing has to be edited afterwards.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
package=modelvold/rpc/gen
mkdir -p "daemon/$package"
rm -f "daemon/$package"/*_pb2*.py "daemon/$package"/*_pb2.pyi
"$python" -m grpc_tools.protoc \
    --proto_path="$package=proto/containerd" --proto_path="$package=proto/modelvold" \
    --python_out=daemon --pyi_out=daemon --grpc_python_out=daemon \
    "$package/mount.proto" "$package/snapshots.proto" "$package/control.proto"
