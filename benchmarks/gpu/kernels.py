"""The objectives that are large in the papers, at the papers' sizes, beside their own arithmetic."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import peak_mib, seconds

from dense_ssl.models.point_unet import PointUNet
from dense_ssl.objectives.auxiliary_contrast import auxiliary_contrast
from dense_ssl.objectives.prototypes import prototype_loss, sinkhorn
from dense_ssl.objectives.set_infonce import pixel_infonce, set_infonce

sys.path.append(str(Path(__file__).resolve().parents[1]))


def loss_and_gradients(function: Callable, *tensors: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(*tensors), tensors)


def compared(ours: Callable, others: dict[str, Callable], device: str, rounds: int) -> dict:
    "Seconds and peak memory of ours and of others, and ours over theirs."
    result = {"seconds": seconds(ours, device, rounds), "peak_mib": peak_mib(ours, device)}
    for name, other in others.items():
        try:
            took, peak = seconds(other, device, rounds), peak_mib(other, device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            result[name] = "out of memory"
            continue
        result |= {f"{name}_seconds": took, f"{name}_peak_mib": peak, f"ratio_to_{name}": result["seconds"] / took}
    return result


def auxiliary(device: str, tiny: bool, options: object) -> dict:
    """10000 anchors, 40000 candidates, 128 channels, forward and backward, beside the plain version and its own four
    products and two exponentials."""
    import auxiliary_contrast as benchmark

    result = {}
    for tf32 in (False, True) if device == "cuda" else (False,):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        given = benchmark.inputs(*((200, 800) if tiny else (10000, 40000)), 60, device)
        versions = {
            v: (lambda v=v, given=given: benchmark.step(v, *given))
            for v in ("here", "plain", "arithmetic", "here, three quarters from a bank")
        }
        row = compared(versions.pop("here"), versions, device, 3 if tiny else 10)
        x, y, x_ids, y_ids = given
        value = auxiliary_contrast(x, y, x_ids, y_ids)
        exact = (
            auxiliary_contrast(x[:500].double(), y.double(), x_ids[:500], y_ids),
            auxiliary_contrast(x[:500], y, x_ids[:500], y_ids),
        )
        row |= {"value": value.item(), "error_of_500_anchors": abs(exact[1] - exact[0]).item() / abs(exact[0].item())}
        result["tf32" if tf32 else "float32"] = row
    torch.backends.cuda.matmul.allow_tf32 = False
    row = result["float32"]
    return {
        **result,
        "says": f"{row['seconds'] * 1e3:.1f} ms, {row['ratio_to_arithmetic']:.2f} x its arithmetic, "
        f"{row['peak_mib']} MiB",
    }


def sets(device: str, tiny: bool, options: object) -> dict:
    "1024 matches of 64 pairs; 64 pairs of 9600 cells in 40 sets."
    g = torch.Generator().manual_seed(0)
    pairs, matches, cells = (2, 64, 300) if tiny else (64, 1024, 9600)
    f = [torch.randn(pairs * matches, 64, generator=g).to(device).requires_grad_() for _ in range(2)]
    pair = torch.arange(pairs, device=device).repeat_interleave(matches)
    maps = [torch.randn(pairs * cells, 64, generator=g).to(device).requires_grad_() for _ in range(2)]
    ids = [torch.randint(40, (pairs * cells,), generator=g).to(device) for _ in range(2)]
    of = torch.arange(pairs, device=device).repeat_interleave(cells)

    def products() -> None:
        a, b = (F.normalize(x.detach(), dim=1).view(pairs, matches, -1) for x in f)
        for _ in range(2):
            torch.exp(a @ b.mT) @ b

    pixels = compared(
        loss_and_gradients(lambda a, b: pixel_infonce(a, b, 0.4, pair), *f),
        {"two products and an exponential, twice": products},
        device,
        3 if tiny else 10,
    )
    means = compared(
        loss_and_gradients(lambda a, b: set_infonce(a, ids[0], b, ids[1], 0.4, of, of), *maps),
        {},
        device,
        3 if tiny else 10,
    )
    return {
        "pixel_infonce": pixels,
        "set_infonce": means,
        "says": f"pixels {pixels['seconds'] * 1e3:.1f} ms, sets {means['seconds'] * 1e3:.1f} ms",
    }


def codes(device: str, tiny: bool, options: object) -> dict:
    "Sinkhorn and the prototype loss of 288000 samples and 1000 prototypes, half and half as the paper has them."
    import sinkhorn as benchmark

    samples, number = (500, 20) if tiny else (288000, 1000)
    z, c, groups = benchmark.inputs(samples, number, device)
    scores = (F.normalize(z, dim=1) @ F.normalize(c, dim=1).T).detach()
    one = compared(
        lambda: sinkhorn(scores),
        {"plain": lambda: benchmark.plain_sinkhorn(scores), "one copy": lambda: scores.clone()},
        device,
        3 if tiny else 10,
    )
    half = z[: samples // 2].detach().requires_grad_()
    two = compared(
        loss_and_gradients(lambda x, p: prototype_loss(x, p, groups[: samples // 2]), half, c),
        {"plain": loss_and_gradients(lambda x, p: benchmark.plain_loss(x, p, groups[: samples // 2]), half, c)},
        device,
        3 if tiny else 10,
    )
    return {
        "sinkhorn": one,
        "prototype_loss": two,
        "says": f"Sinkhorn {one['seconds'] * 1e3:.1f} ms, {one['ratio_to_plain']:.2f} x plain; "
        f"loss {two['seconds'] * 1e3:.1f} ms",
    }


def voxels(device: str, tiny: bool, options: object) -> dict:
    "The sparse 3D U-Net of Pri3D on surfaces of 8 rooms at 2 cm, its tables, forward and backward."
    g = torch.Generator().manual_seed(0)
    count = 2000 if tiny else 25000
    batch = torch.arange(2 if tiny else 8).repeat_interleave(count)
    sheet = torch.cat(
        [torch.randint(200, (len(batch), 2), generator=g), torch.randint(3, (len(batch), 1), generator=g)], 1
    )
    rows = torch.cat([batch[:, None], sheet], 1).unique(dim=0).int().to(device)
    features = torch.randn(len(rows), 3, generator=g).to(device)
    network = PointUNet(3, 64, (8, 12) if tiny else (32, 64, 128, 256)).to(device)
    took = seconds(
        lambda: torch.autograd.grad(network(rows, features).square().sum(), list(network.parameters())),
        device,
        3 if tiny else 10,
    )
    return {"voxels": len(rows), "step_seconds": took, "says": f"{len(rows)} voxels {took * 1e3:.1f} ms"}


STAGES = {
    "kernel-auxiliary": (auxiliary, 60),
    "kernel-sets": (sets, 40),
    "kernel-codes": (codes, 40),
    "kernel-voxels": (voxels, 40),
}
