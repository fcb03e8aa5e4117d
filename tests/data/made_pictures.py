import io

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8), channels: int = 3) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def png(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()
