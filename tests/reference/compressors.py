"""What each compressor does to one vector, in plain numpy: what comes out is what a receiver decodes."""

import numpy as np

tiny = np.finfo(np.float32).tiny


def bf16(x):
    """Rounded to the nearest number of 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(np.asarray(x, dtype=np.float64))
    return np.ldexp(np.rint(mantissa * 2**8), exponent - 8)


def fp16(x):
    return np.asarray(x).astype(np.float16).astype(np.float64)


def blocks(x, block):
    return [x[start : start + block] for start in range(0, len(x), block)]


def top_k(x, k):
    out = np.zeros(len(x))
    for place in sorted(range(len(x)), key=lambda i: -abs(x[i]))[:k]:
        out[place] = x[place]
    return out


def block_top_k(x, k, block):
    return np.concatenate([np.zeros(0)] + [top_k(each, k) for each in blocks(x, block)])


def rand_k(x, k, numbers, scale=1.0):
    """The entries with the k largest of the ``numbers`` drawn for them."""
    keep = sorted(numbers)[len(x) - k :]
    return np.array([scale * value if number in keep else 0.0 for value, number in zip(x, numbers, strict=True)])


def scaled_sign(x, block):
    return np.concatenate([np.zeros(0)] + [np.abs(each).mean() * np.where(each >= 0, 1, -1) for each in blocks(x, block)])


def int8(x, block):
    scales = [max(np.abs(each).max() / 127, tiny) for each in blocks(x, block)]
    return np.concatenate([np.zeros(0)] + [s * np.rint(each / s) for s, each in zip(scales, blocks(x, block), strict=True)])


def qsgd(x, levels, block, draws):
    """Rounded up where the draw in [0, 1) is at least the distance to the upper neighbour."""
    out = np.zeros(len(x))
    for start in range(0, len(x), block):
        part = slice(start, start + block)
        norm = np.linalg.norm(x[part])
        if norm > 0:
            out[part] = np.sign(x[part]) * norm / levels * np.floor(np.abs(x[part]) / norm * levels + draws[part])
    return out
