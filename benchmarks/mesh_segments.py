"""Surface segments of meshes: seconds at 40k to 320k vertices, in a new process, and against the same two passes in
plain Python.

    python benchmarks/mesh_segments.py [--rounds 7] [--out benchmarks/mesh_segments.cpu.json]

"rough" is a bent sheet with noise, whose vertices and faces are shuffled: the worst order for memory. "room" is a room
of the room world, exact
and with noise, in its own order. The sizes take turns in one process; the first round warms up, all numbers are
medians. "seconds" are by the clock,
"processor seconds" what this process itself used (one thread: the same on an idle machine, less where others work; the
growth is theirs).
"first call in a new process": imports done, `segment_mesh` on 160k vertices with numba's cache empty, then with the
cache that this left, in
processor seconds. "plain Python": the two passes over lists, with the same normals, on the 40k mesh, once; the
partitions are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dense_ssl.core import environment, write_json
from dense_ssl.data.worlds.room import RoomWorld
from dense_ssl.evaluation.metrics import hardware
from dense_ssl.geometry.segments import segment_mesh, vertex_normals

SIDES = {"rough, 40k": 200, "rough, 80k": 283, "rough, 160k": 400, "rough, 320k": 566}


def rough_mesh(side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "A bent, noisy sheet of side x side vertices: vertices (V, 3) and faces (F, 3), both shuffled."
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    z = 8 * np.sin(x / 25) + 9 * np.cos(y / 31) + np.abs(x % 80 - 40) / 3 + rng.normal(0, 0.1, x.shape)
    i = np.arange(side * side).reshape(side, side)
    upper, lower = (
        np.stack([i[:-1, :-1], i[:-1, 1:], i[1:, :-1]], -1),
        np.stack([i[:-1, 1:], i[1:, 1:], i[1:, :-1]], -1),
    )
    faces = np.concatenate([upper.reshape(-1, 3), lower.reshape(-1, 3)])
    old = rng.permutation(side * side)
    new = np.empty_like(old)
    new[old] = np.arange(len(old))
    return np.stack([x, y, z], -1).reshape(-1, 3)[old] * 0.02, rng.permutation(new[faces])


def timed(function: Callable, *arguments: Any) -> tuple[float, float, Any]:
    "Seconds by the clock, processor seconds, and what came out."
    clock, used = time.perf_counter(), time.process_time()
    out = function(*arguments)
    return time.perf_counter() - clock, time.process_time() - used, out


def plain(vertices: np.ndarray, faces: np.ndarray, k: float = 0.01, minimum: int = 20) -> np.ndarray:
    "The same partition where no two weights are equal."
    edges = faces[:, [0, 1, 0, 2, 2, 1]].reshape(-1, 2)
    normals = vertex_normals(vertices, faces)
    weight = 1 - (normals[edges[:, 0]] * normals[edges[:, 1]]).sum(1)
    along = vertices[edges[:, 1]] - vertices[edges[:, 0]]
    weight = np.where((normals[edges[:, 1]] * along).sum(1) > 0, weight**2, weight)
    order = np.argsort(weight, kind="stable")
    light_first = list(zip(weight[order].tolist(), edges[order].tolist(), strict=True))
    parent, size, tau = list(range(len(vertices))), [1] * len(vertices), [k] * len(vertices)

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for small in (False, True):
        for w, (a, b) in light_first:
            a, b = find(a), find(b)
            if a != b and (min(size[a], size[b]) < minimum if small else w <= tau[a] and w <= tau[b]):
                a, b = (a, b) if size[a] >= size[b] else (b, a)
                parent[b], size[a] = a, size[a] + size[b]
                tau[a] = w + k / size[a]
    return np.array([find(i) for i in range(len(parent))])


def first_calls() -> dict[str, float]:
    "Processor seconds of the first call in a new process, without and with compiled code in numba's cache."
    code = (
        "import sys, time; sys.path.insert(0, 'benchmarks'); from mesh_segments import rough_mesh, segment_mesh; "
        "mesh = rough_mesh(400); began = time.process_time(); segment_mesh(*mesh); print(time.process_time() - began)"
    )
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache}
        runs = [
            subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
            for _ in range(2)
        ]
    return {"compiling": round(float(runs[0]), 3), "compiled before": round(float(runs[1]), 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out")
    a = parser.parse_args()
    torch.set_num_threads(1)
    room = RoomWorld("test", count=48).mesh(8, 0.035)[:2]
    meshes = {name: rough_mesh(side) for name, side in SIDES.items()}
    noise = np.random.default_rng(0).normal(0, 0.004, room[0].shape)
    meshes |= {"room, exact": room, "room, 4 mm of noise": (room[0] + noise, room[1])}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in meshes}
    pieces = {}
    for k in range(a.rounds + 1):
        for name, mesh in meshes.items():
            clock, used, ids = timed(segment_mesh, *mesh)
            pieces[name] = int(ids.max()) + 1
            if k:
                found[name].append((clock, used))
    clock, used = (
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in found.items()} for i in (0, 1)
    )
    _, slow, theirs = timed(plain, *meshes["rough, 40k"])
    _, fast, ids = timed(segment_mesh, *meshes["rough, 40k"])
    pairs = len(np.unique(np.stack([ids, theirs]), axis=1).T)
    if not pairs == len(np.unique(theirs)) == pieces["rough, 40k"]:
        raise SystemExit("the partition of the plain version differs")
    rows = {
        name: {
            "vertices": len(mesh[0]),
            "faces": len(mesh[1]),
            "pieces": pieces[name],
            "seconds": round(clock[name], 4),
            "processor seconds": round(used[name], 4),
        }
        for name, mesh in meshes.items()
    }
    result = {
        "meshes": rows,
        "growth of the cost at 1x, 2x, 4x, 8x vertices": [round(used[name] / used["rough, 40k"], 2) for name in SIDES],
        "first call in a new process, processor seconds": first_calls(),
        "plain Python, rough, 40k, processor seconds": {
            "plain": round(slow, 3),
            "segment_mesh": round(fast, 4),
            "ratio": round(slow / fast, 1),
        },
        "reach, seconds at 160k": 1.5,
        "rounds": a.rounds,
        "k_threshold": 0.01,
        "min_vertices": 20,
        "environment": {k: v for k, v in environment().items() if k != "platform"},
        "device": hardware(),
    }
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(a.out, result)
