"""Every compressor, and vectors as they may meet them: of any size and dtype, with ties, denormals and heavy tails."""

import torch
from hypothesis import strategies as st

from disttrain import random
from disttrain.compression import QSGD, BlockTopK, Cast, Compose, Identity, Int8, RandK, ScaledSign, TopK

FP32 = Cast("fp32")
COMPRESSORS = {
    "identity": Identity(),
    "bf16": Cast("bf16"),
    "fp16": Cast("fp16"),
    "fp64": Cast("fp64"),
    "top_k": TopK(0.1),
    "top_k fp32": TopK(0.3, FP32),
    "top_k fp16": TopK(0.2, Cast("fp16")),
    "block_top_k 1 of 32": BlockTopK(1, 32),
    "block_top_k 3 of 16": BlockTopK(3, 16),
    "block_top_k 8 bits": BlockTopK(5, 256, FP32),
    "block_top_k 12 bits": BlockTopK(3, 300),
    "block_top_k 16 bits": BlockTopK(7, 4099),
    "rand_k": RandK(0.2),
    "rand_k unbiased": RandK(0.2, unbiased=True),
    "sign": ScaledSign(16),
    "sign 1024": ScaledSign(),
    "int8": Int8(16),
    "int8 256": Int8(),
    "qsgd 2": QSGD(2, 16),
    "qsgd 4": QSGD(4),
    "qsgd 8": QSGD(8, 64),
    "top_k int8": Compose(TopK(0.3), Int8(8)),
    "block_top_k int8": Compose(BlockTopK(5, 32), Int8(64)),
    "block_top_k qsgd": Compose(BlockTopK(4, 16), QSGD(8, 16)),
    "rand_k int8": Compose(RandK(0.4), Int8(8)),
    "rand_k qsgd": Compose(RandK(0.4, unbiased=True), QSGD(4, 8)),
}
SPARSE = {name: each for name, each in COMPRESSORS.items() if "_k" in name}
RANDOM = {name: each for name, each in COMPRESSORS.items() if each.is_random}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SEEDS = st.integers(0, 2**40)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def keys(*shape, seed=0):
    """One key for each vector, int64 ``[*shape]``."""
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    return random.key(seed, random.Stream.COMPRESSION, 0, numbers)


def decoded(compressor, x, seed=0):
    """What becomes of vectors ``[..., d]``, each with a key of its own."""
    return compressor.decode(compressor.encode(x, keys(*x.shape[:-1], seed=seed)), x.shape[-1])


def block_of(compressor):
    """Entries of a block, of the kept ones' blocks, or any number."""
    return getattr(compressor, "block", None) or getattr(getattr(compressor, "values", None), "block", 7)


KINDS = {
    "gaussian": lambda x: x,
    "heavy": lambda x: x**5,
    "equal": lambda x: torch.full_like(x, 0.7),
    "ties": lambda x: x.sign() * (1 + x.abs().floor()),
    "one-hot": lambda x: torch.zeros_like(x).index_fill_(-1, torch.tensor([x.shape[-1] // 2] if x.shape[-1] else []).long(), 3.0),
    "zeros": torch.zeros_like,
    "denormal": lambda x: x * 1e-39,
    "barely normal": lambda x: x * 1e-37,
    "huge": lambda x: x * 1e30,
}


@st.composite
def rows(draw, compressor, kinds=tuple(KINDS), dtypes=tuple(DTYPES)):
    """``[L, d]``, one to three rows of few to many entries; in float16, 1e30 is 1e3."""
    block = block_of(compressor)
    d = draw(st.sampled_from([0, 1, 2, block - 1, block, block + 1, 2 * block, 13, 97, 211]))
    dtype, kind = draw(st.sampled_from(dtypes)), draw(st.sampled_from(kinds))
    x = KINDS[kind](gaussian(draw(st.integers(1, 3)), d, seed=draw(SEEDS)))
    narrow = dtype is torch.float16 or "fp16" in str(compressor)
    return x.clamp(-6e4, 6e4).to(dtype) if narrow else x.to(dtype)
