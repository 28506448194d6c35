#!/usr/bin/env bash
# What an offline GPU machine lacks, as wheels in DIR: CPython 3.12 on x86-64 that has torch 2.11 (CUDA 13), torchvision 0.26, triton, numpy, scipy,
# scikit-image, scikit-learn, numba, h5py, timm, safetensors, transformers, matplotlib, tensorboard, tqdm, PyYAML and lightning. At most 30 MB.
#     bash benchmarks/gpu/wheels.sh DIR          with a network; then, on the machine:
#     python3 -m pip install --no-index --no-deps --target SITE DIR/*.whl && PYTHONPATH=SITE python3 benchmarks/gpu/run.py --out OUT
set -euo pipefail
cd "$(dirname "$0")/../.."
DIR=${1:?usage: wheels.sh DIR}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$DIR"
PACKAGES="lightning-fabric segmentation-models-pytorch pydantic pydantic-core annotated-types typing-inspection infomap trimesh"
for name in $PACKAGES; do
  version=$(grep -i "^${name//-/[-_]}==" constraints.txt) || { echo "$name has no version in constraints.txt" >&2; exit 1; }
  "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $(
    for n in 39 35 34 31 28 27 26 24 17; do echo "--platform manylinux_2_${n}_x86_64"; done) --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
    -d "$DIR" "$version"
done
mib=$(du -sm "$DIR" | cut -f1)
echo "$(ls "$DIR"/*.whl | wc -l) wheels, $mib MB in $DIR"
[ "$mib" -le 30 ] || { echo "more than 30 MB" >&2; exit 1; }
