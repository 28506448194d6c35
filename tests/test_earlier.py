"""A run folder of earlier code (three steps of PiCIE on rooms, made by commit d4b6cff) still loads, says that it is
stale, and draws."""

from pathlib import Path

import matplotlib
import numpy as np
import torch

from dense_ssl.core import changed_code, is_done
from dense_ssl.data.worlds.room import RoomWorld
from dense_ssl.data.views import normalize_image
from dense_ssl.methods.catalog import load_method
from dense_ssl.models.encoders import load_encoder
from dense_ssl.viz.pca import pca_maps

matplotlib.use("agg")
RUN = Path(__file__).parent / "earlier" / "picie-ff595f4b"
# What the code that made it gave for the first cell of the image below.
EMBEDDED = [0.510148, 0.370481, -0.154712, -0.668533, -0.283128, -0.226845]


@torch.no_grad()
def test_a_run_of_earlier_code_loads_and_draws():
    assert is_done(RUN) and changed_code(RUN) == ["dense_ssl"]
    image = normalize_image(RoomWorld(count=1, size=(48, 64))[0].image)[None]
    model = load_method(RUN)
    torch.testing.assert_close(model.embed(image)[0, :, 0, 0], torch.tensor(EMBEDDED), rtol=0, atol=1e-3)
    assert model.prototypes.shape == (4, 6)
    features = load_encoder(RUN).eval()(image.repeat(2, 1, 1, 1))
    maps = pca_maps(list(features))
    assert [m.shape for m in maps] == [(2, 2, 3)] * 2
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)
