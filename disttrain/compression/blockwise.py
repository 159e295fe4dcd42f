"""What compressors with a scale for each block of entries have in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from disttrain.compression.codec import HEADER_BYTES, from_bytes, header, nan_unless_finite, packed_bytes, to_bytes
from disttrain.compression.piecewise import Piecewise, pieces

SCALE_BYTES = 4


class Blockwise(Piecewise):
    """Compressors with a scale for each ``block`` of entries, the last of which may be shorter, and ``bits`` for each entry.

    Payload: header, a float32 scale for each block, the entries' integers.
    """

    bits: int
    levels: int = 1
    """How many steps a scale is; packed integers count steps."""

    def num_blocks(self, d: int) -> int:
        """Of d entries, a last shorter one included."""
        return -(-d // self.block)

    def payload_bytes(self, d: int) -> int:
        """Header, scales and d integers."""
        return HEADER_BYTES + SCALE_BYTES * self.num_blocks(d) + packed_bytes(d, self.bits)

    def quantize(self, x: Tensor, keys: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
        """Some blocks ``[..., m]``, which begin at entry ``start``, to scales ``[..., blocks]`` and packed integers; scales,
        being of norms, are finite only where all entries are."""
        raise NotImplementedError(f"{type(self).__name__} must define quantize()")

    def expand(self, packed: Tensor, m: int) -> Tensor:
        """Packed integers to m floats, a fresh tensor ``[..., m]``."""
        raise NotImplementedError(f"{type(self).__name__} must define expand()")

    def encode(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Floats ``[..., d]`` to uint8."""
        d = x.shape[-1]
        payload = torch.empty(*x.shape[:-1], self.payload_bytes(d), dtype=torch.uint8, device=x.device)
        scales = torch.empty(*x.shape[:-1], self.num_blocks(d), device=x.device)
        for piece in pieces(x, d, self.block):
            scales[..., self._blocks(piece)], payload[..., self._bytes(d, piece)] = self.quantize(
                x[..., piece], keys, piece.start
            )
        payload[..., :HEADER_BYTES] = header(scales.isfinite().all(-1))
        payload[..., HEADER_BYTES : self._bytes(d, slice(0, 0)).start] = to_bytes(scales)
        return payload

    def decode_piece(self, payload: Tensor, d: int, piece: slice) -> Tensor:
        """uint8 to float32, entries ``[..., piece]``."""
        blocks, m = self._blocks(piece), piece.stop - piece.start
        scales = payload[..., HEADER_BYTES + SCALE_BYTES * blocks.start : HEADER_BYTES + SCALE_BYTES * blocks.stop]
        steps = nan_unless_finite(from_bytes(scales, torch.float32) / self.levels, payload)
        values = self.expand(payload[..., self._bytes(d, piece)], m)
        tail = m % self.block
        values[..., : m - tail].unflatten(-1, (-1, self.block)).mul_(steps[..., : m // self.block, None])
        values[..., m - tail :].mul_(steps[..., m // self.block :])  # of one shorter block, or none
        return values

    def blocks_of(self, x: Tensor, start: int) -> Tensor:
        """``[..., m]``, which begins at entry ``start``, to float32 ``[..., blocks, block]``, zeros after the end.

        A vector shorter than a block stays so: thousands of simulated workers' parts of a few entries would fill the memory.
        """
        if start == 0 and 0 < x.shape[-1] < self.block:  # a shorter last block, by contrast, is summed as if in a longer piece
            return x.float().contiguous()[..., None, :]
        padding = -x.shape[-1] % self.block
        padded: Tensor = F.pad(x.float(), (0, padding)) if padding else x.float()  # without padding, pad() would copy
        return padded.view(*x.shape[:-1], -1, self.block)

    def _blocks(self, piece: slice) -> slice:
        return slice(piece.start // self.block, self.num_blocks(piece.stop))

    def _bytes(self, d: int, piece: slice) -> slice:
        start = HEADER_BYTES + SCALE_BYTES * self.num_blocks(d)
        return slice(start + packed_bytes(piece.start, self.bits), start + packed_bytes(piece.stop, self.bits))
